"""Training: a pure function of data and recipe, whatever the workers and whoever kills it."""

import dataclasses
import glob
import os
import subprocess
import sys
import time
from unittest.mock import Mock

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_python, small_recipe
from ruamel.yaml import YAML

from pipeline import training
from pipeline.stages.train import fold_metrics, history_table
from pipeline.training import (
    READERS, WORKER_ENVIRONMENT, Trainer, augment_all, best_precision, fingerprint, train_folds)

FOLDS = 2


def test_augmentation_is_a_function_of_its_key(digits):
    # More images than are augmented at once.
    images = np.tile(digits.images, (2, 1, 1))
    once, again, other = (augment_all(images, key) for key in ((1, 0, 0), (1, 0, 0), (1, 0, 1)))
    assert once.shape == images.shape and once.dtype == np.float32
    assert once.tobytes() == again.tobytes()
    assert np.all(np.any(once != other, axis=(1, 2)))


def test_augmentation_distorts_every_image_in_its_own_way_within_the_range_of_pixels(digits):
    images = np.repeat(digits.images[:1], 600, axis=0)
    distorted = augment_all(images, (1,))
    assert distorted.min() >= 0 and distorted.max() <= 255
    assert len({image.tobytes() for image in distorted} | {images[0].astype("float32").tobytes()}) == 601
    # Still the same digits: twenty times as often as by chance nearest to their own originals.
    everyone = augment_all(digits.images, (1,)).reshape(len(digits.images), -1)
    correlation = np.corrcoef(everyone, digits.images.reshape(len(digits.images), -1))[:400, 400:]
    assert np.mean(correlation.argmax(axis=1) == np.arange(400)) > 0.05


def test_all_epochs_but_the_last_are_augmented(digits, monkeypatch):
    augmented = []
    monkeypatch.setattr(training, "augment_all", lambda images, key: augmented.append(key) or images)
    trainer = Trainer(small_recipe(), digits)
    for fold, reader in ((1, "rows"), (0, "rows"), (0, "grid_rows")):
        values = trainer.initial_values(fold, reader)
        for epoch in range(3):
            values, _ = trainer.train_epoch(fold, reader, epoch, values)
    assert len(augmented) == len(set(augmented)) == 3 * 2
    assert {epoch for *_, epoch, _ in augmented} == {0, 1}


def test_initial_weights_are_a_function_of_seed_kind_and_fold(digits):
    def start(trainer, fold):
        return [value.tobytes() for reader in READERS for value in trainer.initial_values(fold, reader)]

    trainer = Trainer(small_recipe(), digits)
    first, second = start(trainer, 0), start(trainer, 1)
    assert first != second
    assert start(trainer, 0) == first
    assert start(Trainer(small_recipe(), digits), 1) == second
    assert start(Trainer(small_recipe(seed=1), digits), 0) != first
    along, down = (trainer.initial_values(0, reader) for reader in ("grid_rows", "grid_columns"))
    assert [value.shape for value in along] == [value.shape for value in down]
    assert along[0].tobytes() != down[0].tobytes()


def test_the_rows_of_a_fold(digits):
    parts = [digits.split(fold) for fold in range(FOLDS)]
    held_out = np.flatnonzero(digits.folds < 0)
    assert len(held_out) == 40
    for train, validation in parts:
        assert sorted([*train, *validation, *held_out]) == list(range(400))
    assert sorted([*parts[0][1], *parts[1][1], *held_out]) == list(range(400))


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """Trains with a number of workers: `(folder, histories, probabilities, progress)`."""
    def train(workers, **changes):
        folder, progress = tmp_path_factory.mktemp("train"), Mock()
        histories, probabilities = train_folds(
            small_recipe(**changes), digits, FOLDS, workers, folder / "state",
            [folder / f"fold_{fold}.keras" for fold in range(FOLDS)], progress)
        return folder, histories, probabilities, progress

    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    yield {1: train(1), 2: train(2), "all": train(2, reader="all"), "shifts": train(2, shifts=True)}
    for name, value in before.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value


def states(folder):
    """What is left of each network, without the seconds."""
    for path in sorted((folder / "state").iterdir()):
        with np.load(path) as file:
            yield path.name, {name: file[name].tobytes() for name in file.files if name != "history"}


def weights(path):
    return [value.tobytes() for value in keras.models.load_model(path).get_weights()]


def test_the_number_of_workers_changes_no_byte(trained):
    (one, _, one_probabilities, _), (two, _, two_probabilities, _) = trained[1], trained[2]
    assert dict(states(one)) == dict(states(two))
    for fold, (_, state) in enumerate(states(one)):
        assert len(state) > 10
        assert weights(one / f"fold_{fold}.keras") == weights(two / f"fold_{fold}.keras")
        assert one_probabilities[fold].tobytes() == two_probabilities[fold].tobytes()


def test_training_learns(trained):
    for history in trained[1][1]:
        assert history[-1]["loss"] < history[0]["loss"]
        assert history[-1]["val_loss"] < history[0]["val_loss"]
        assert history[-1]["accuracy"] > 0.15
        assert [epoch["epoch"] for epoch in history] == [1, 2, 3]


def test_a_checkpoint_is_the_network_that_made_the_probabilities(digits, trained):
    folder, _, probabilities, _ = trained[1]
    for fold in range(FOLDS):
        validation = digits.split(fold)[1]
        network = keras.models.load_model(folder / f"fold_{fold}.keras")
        images = digits.images[validation].astype("float32")
        np.testing.assert_allclose(network.predict(images, verbose=0), probabilities[fold], atol=1e-5)
        np.testing.assert_allclose(probabilities[fold].sum(axis=1), 1, atol=1e-5)


def test_all_kinds_of_networks_in_a_fold_are_those_of_its_turns_and_are_averaged(digits, trained):
    """So a run with all can go on from the networks of an interrupted run with turns."""
    (turns, _, alone, _), (everything, histories, together, _) = trained[1], trained["all"]
    assert len(histories) == 3 * FOLDS
    assert dict(states(turns)).items() <= dict(states(everything)).items()
    for fold in range(FOLDS):
        images = digits.images[digits.split(fold)[1]].astype("float32")
        network = keras.models.load_model(everything / f"fold_{fold}.keras")
        parts = [network.get_layer(reader).predict(images, verbose=0) for reader in READERS]
        np.testing.assert_allclose(parts[fold], alone[fold], atol=1e-5)
        np.testing.assert_allclose(np.mean(parts, axis=0), together[fold], atol=1e-5)


def test_averaging_over_shifts_changes_no_weight_and_counts_out_of_fold(digits, trained):
    (plain, _, alone, _), (shifted, _, averaged, _) = trained[1], trained["shifts"]
    assert dict(states(plain)) == dict(states(shifted))
    for fold in range(FOLDS):
        assert weights(plain / f"fold_{fold}.keras") == weights(shifted / f"fold_{fold}.keras")
        images = digits.images[digits.split(fold)[1]].astype("float32")
        network = keras.models.load_model(shifted / f"fold_{fold}.keras")
        np.testing.assert_allclose(network.predict(images, verbose=0), averaged[fold], atol=1e-5)
        assert np.abs(averaged[fold] - alone[fold]).max() > 1e-4


def test_the_tables_of_folds_with_three_networks(digits, trained):
    histories, probabilities = trained["all"][1:3]
    of_folds = [histories[:3], histories[3:]]
    oof = np.full((400, 10), np.nan)
    for fold in range(FOLDS):
        oof[digits.split(fold)[1]] = probabilities[fold]
    folds = fold_metrics(digits, small_recipe(reader="all"), of_folds, oof)
    assert folds["fold_1"]["reader"] == "rows, grid_rows, grid_columns" and folds["fold_1"]["epochs"] == 3
    assert folds["fold_1"]["seconds"] == round(sum(epoch["seconds"] for history in of_folds[1] for epoch in history), 1)
    table = history_table(of_folds)
    assert table["epoch"].tolist() == [1, 2, 3]
    assert table["loss"][0] == pytest.approx(np.mean([history[0]["loss"] for history in histories]))
    assert table["val_accuracy_1"][2] == pytest.approx(np.mean([history[2]["val_accuracy"] for history in of_folds[1]]))


def test_progress_is_told_of_every_epoch(trained):
    progress = trained[2][3]
    progress.resumed.assert_not_called()
    told = sorted((call.args[0], call.args[1]["epoch"]) for call in progress.finished.call_args_list)
    assert told == [(fold, epoch) for fold in range(FOLDS) for epoch in (1, 2, 3)]


def test_the_fingerprint_knows_recipe_and_data(digits):
    def of(recipe=small_recipe(), **changes):
        return fingerprint(recipe, dataclasses.replace(digits, **changes))

    assert of() == of() == of(small_recipe(reader="all", shifts=True))
    changed = digits.images.copy()
    changed[0, 0, 0] ^= 1
    assert len({of(), of(small_recipe(seed=1)), of(small_recipe(epochs=4)), of(images=changed),
                of(folds=1 - digits.folds)}) == 5


def test_auto_precision_is_one_of_the_two():
    assert best_precision() in ("float32", "bfloat16")


# The stage


@pytest.fixture
def folder(digits, tmp_path):
    """A project folder in which `python -m pipeline.stages.train` can run."""
    def make(name):
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True)
        np.savez(folder / "data/digits.npz", **dataclasses.asdict(digits))
        params = YAML(typ="safe").load(ROOT / "params.yaml")
        params["prepare"]["folds"] = FOLDS
        params["model"].update(reader="turns", layers=1, units=16, grid_layers=1, grid_units=16)
        params["train"].update(epochs=12, batch_size=32, precision="float32", workers=FOLDS)
        YAML(typ="safe").dump(params, folder / "params.yaml")
        return folder

    return make


def test_a_killed_training_goes_on_as_if_nothing_had_happened(folder):
    whole, killed = folder("whole"), folder("killed")
    done = run_python("-m", "pipeline.stages.train", cwd=whole)
    assert done.returncode == 0, done.stderr

    with subprocess.Popen([sys.executable, "-m", "pipeline.stages.train"], cwd=killed, text=True,
                          stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        while not glob.glob(str(killed / "data/training_state/*/fold_*.npz")):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        # The pipe ends when the workers, who share it, have followed.
        process.communicate()
    assert not (killed / "data/oof.npz").exists()
    assert not (killed / "metrics").exists()

    done = run_python("-m", "pipeline.stages.train", cwd=killed)
    assert done.returncode == 0, done.stderr
    assert "goes on after epoch" in done.stdout
    assert not (killed / "data/training_state").exists()
    ours, theirs = (np.load(path / "data/oof.npz") for path in (killed, whole))
    assert all(ours[name].tobytes() == theirs[name].tobytes()
               for name in ("probabilities", "labels", "folds"))
    for fold in range(FOLDS):
        name = f"data/checkpoints/fold_{fold}.keras"
        assert weights(killed / name) == weights(whole / name)
    assert (killed / "metrics/history.csv").read_bytes() == (whole / "metrics/history.csv").read_bytes()
    assert not [path for path in killed.rglob(".*")]
    assert len(pd.read_csv(killed / "metrics/history.csv")) == 12
