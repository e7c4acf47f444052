"""The display of a running training and its logs."""

import os
import pty

import numpy as np
import pandas as pd
import pytest
from helpers import small_params
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.folds import TrainingData
from pipeline.training import progress as module
from pipeline.training.members import Member
from pipeline.training.progress import TrainingProgress

ROWS, GRID = Member(0, "rows", 7), Member(1, "grid_rows", 7)
DATA = TrainingData(np.zeros((4, 28, 28), "uint8"), np.zeros(4, "uint8"), np.array([0, 0, 1, 1], "int8"))


def epoch(number):
    figures = {"loss": 1 / number, "accuracy": 0.9, "val_loss": 0.5 / number, "val_accuracy": 0.8}
    return {"epoch": number, **figures, "images": 100, "seconds": 2.0, "input_seconds": 0.1}


def start(*logs):
    return TrainingProgress(small_params(), DATA, [ROWS, GRID], 2, *logs)


def test_a_line_and_rows_of_the_table_for_each_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "INTERVAL", 0)
    table = tmp_path / "history.csv"
    with start(table) as progress:
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


def test_many_epochs_in_a_second_are_written_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", 1000)
    with start(tmp_path / "history.csv") as progress:
        progress.finished(ROWS, epoch(1))
        progress.finished(ROWS, epoch(2))
        assert len(pd.read_csv(tmp_path / "history.csv")) == 1
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2


@pytest.mark.parametrize(("terminal", "line"), [("dumb", True), ("xterm", False)])
def test_a_terminal_without_a_cursor_gets_lines_too(tmp_path, monkeypatch, terminal, line):
    monkeypatch.setenv("TERM", terminal)
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as stdout, monkeypatch.context() as context:
        context.setattr("sys.stdout", stdout)
        with start(tmp_path / "history.csv") as progress:
            progress.finished(ROWS, epoch(1))
    shown = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert ("fold 0, rows, epoch 1/3: loss 1.000" in shown) == line
    assert "loss 1.000, validation accuracy 0.8000" in shown


def test_tensorboard_has_a_run_for_each_network(tmp_path):
    (tmp_path / "runs/of_another_training").mkdir(parents=True)
    with start(tmp_path / "history.csv", tmp_path / "runs") as progress:
        progress.resumed(ROWS, [epoch(1)])
        progress.finished(GRID, epoch(1))
        progress.finished(ROWS, epoch(2))
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"fold_0_rows", "fold_1_grid_rows"}
    run = EventAccumulator(str(tmp_path / "runs/fold_0_rows")).Reload()
    assert set(run.Tags()["tensors"]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert [event.step for event in run.Tensors("val_loss")] == [1, 2]
    values = [event.tensor_proto.float_val[0] for event in run.Tensors("val_loss")]
    assert values == pytest.approx([0.5, 0.25])
