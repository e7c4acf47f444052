"""Kaggle: download the competition's files, send a submission once, record the history of submissions."""
