"""Kaggle: download the competition's files, send a submission once, keep the history of submissions."""
