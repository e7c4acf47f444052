"""Kaggle: download the competition's files, send a submission once, keep a history of what was sent."""
