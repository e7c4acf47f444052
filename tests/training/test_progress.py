"""The log of a running training: lines, and a table that grows."""

import numpy as np
import pandas as pd
from helpers import small_params

from pipeline.folds import TrainingData
from pipeline.training import progress as module
from pipeline.training.members import Member
from pipeline.training.progress import TrainingProgress

ROWS, GRID = Member(0, "rows", 7), Member(1, "grid_rows", 7)
DATA = TrainingData(np.zeros((4, 28, 28), "uint8"), np.zeros(4, "uint8"), np.array([0, 0, 1, 1], "int8"))


def epoch(number):
    figures = {"loss": 1 / number, "accuracy": 0.9, "val_loss": 0.5 / number, "val_accuracy": 0.8}
    return {"epoch": number, **figures, "images": 100, "seconds": 2.0, "input_seconds": 0.1}


def start(table):
    return TrainingProgress(small_params(), DATA, [ROWS, GRID], 2, table)


def test_a_line_and_rows_of_the_table_for_each_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "INTERVAL", 0)
    table = tmp_path / "history.csv"
    progress = start(table)
    progress.resumed(ROWS, [epoch(1), epoch(2)])
    progress.finished(GRID, epoch(1))
    assert pd.read_csv(table)["epoch"].tolist() == [1, 2, 1]
    progress.finished(ROWS, epoch(3))
    assert pd.read_csv(table)["member"].tolist() == ["fold 0, rows"] * 3 + ["fold 1, grid_rows"]
    lines = capsys.readouterr().out.splitlines()
    assert "2 networks in 2 folds, 2 at a time, on 4 images" in lines[0]
    assert lines[2] == "fold 0, rows: resumes after epoch 2/3"
    assert lines[3].startswith(
        "fold 1, grid_rows, epoch 1/3: loss 1.000, validation accuracy 0.8000, 50 images"
    )
    assert lines[4].startswith("fold 0, rows, epoch 3/3: ")
    columns = ["member", "fold", "architecture", *epoch(1)]
    assert list(pd.read_csv(table)) == columns and pd.read_csv(table)["val_loss"][1] == 0.25
