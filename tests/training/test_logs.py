"""What a running training leaves for others to watch."""

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.training import logs
from pipeline.training.logs import EpochLog
from pipeline.training.members import Member

ROWS, GRID = Member(0, "rows", 7), Member(1, "grid_rows", 7)


def epoch(number):
    figures = {"loss": 1 / number, "accuracy": 0.9, "val_loss": 0.5 / number, "val_accuracy": 0.8}
    return {"epoch": number, **figures, "images": 100, "seconds": 2.0}


def test_the_table_grows_as_epochs_end(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "INTERVAL", 0)
    log, table = EpochLog(tmp_path / "history.csv"), lambda: pd.read_csv(tmp_path / "history.csv")
    log.add(ROWS, [epoch(1), epoch(2)])  # of an earlier run
    log.add(GRID, [epoch(1)])
    assert table()["epoch"].tolist() == [1, 2, 1]
    log.add(ROWS, [epoch(3)])
    assert table()["member"].tolist() == ["fold 0, rows"] * 3 + ["fold 1, grid_rows"]
    assert table()["epoch"].tolist() == [1, 2, 3, 1] and table()["val_loss"][1] == 0.25
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["history.csv"]


def test_many_epochs_in_a_second_are_written_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "INTERVAL", 1000)
    log = EpochLog(tmp_path / "history.csv")
    log.add(ROWS, [epoch(1)])
    log.add(ROWS, [epoch(2)])
    assert len(pd.read_csv(tmp_path / "history.csv")) == 1
    log.close()
    assert len(pd.read_csv(tmp_path / "history.csv")) == 2


def test_tensorboard_has_a_run_for_each_network(tmp_path):
    (tmp_path / "runs/of_another_training").mkdir(parents=True)
    log = EpochLog(tmp_path / "history.csv", tmp_path / "runs")
    log.add(ROWS, [epoch(1)])
    log.add(GRID, [epoch(1)])
    log.add(ROWS, [epoch(2)])
    log.close()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"fold_0_rows", "fold_1_grid_rows"}
    run = EventAccumulator(str(tmp_path / "runs/fold_0_rows")).Reload()
    assert set(run.Tags()["tensors"]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert [event.step for event in run.Tensors("val_loss")] == [1, 2]
    values = [event.tensor_proto.float_val[0] for event in run.Tensors("val_loss")]
    assert values == pytest.approx([0.5, 0.25])
