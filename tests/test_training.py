"""Training: a pure function of data and recipe, whatever the workers and whoever kills it."""

import dataclasses
import glob
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_python, small_recipe
from ruamel.yaml import YAML

from pipeline import training, workers
from pipeline.compiled import COMPILED
from pipeline.stages.train import fold_metrics, history_table
from pipeline.training import (
    CODE, READERS, Network, Trainer, augment_all, best_precision, fingerprint, rounds, smooth)
from pipeline.workers import WORKER_ENVIRONMENT, train_folds

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
    labels = np.full((len(digits.unlabelled), 10), 0.1, np.float32)
    networks = (Network(1, "rows"), Network(0, "rows"), Network(0, "grid_rows"),
                Network(0, "rows", student=True))
    for network in networks:
        values = trainer.initial_values(network)
        for epoch in range(3):
            values, _ = trainer.train_epoch(network, epoch, values, labels)
    assert len(augmented) == len(set(augmented)) == len(networks) * 2
    assert {epoch for *_, epoch, _ in augmented} == {0, 1}


def test_initial_weights_are_a_function_of_seed_kind_and_fold(digits):
    def start(trainer, fold):
        return [value.tobytes() for reader in READERS
                for value in trainer.initial_values(Network(fold, reader))]

    trainer = Trainer(small_recipe(), digits)
    first, second = start(trainer, 0), start(trainer, 1)
    assert first != second
    assert start(trainer, 0) == first
    assert start(Trainer(small_recipe(), digits), 1) == second
    assert start(Trainer(small_recipe(seed=1), digits), 0) != first
    networks = Network(0, "grid_rows"), Network(0, "grid_columns"), Network(0, "grid_rows", student=True)
    values = [trainer.initial_values(network) for network in networks]
    assert len({tuple(value.shape for value in of_network) for of_network in values}) == 1
    assert len({of_network[0].tobytes() for of_network in values}) == 3


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
    def train(number, **changes):
        folder, progress = tmp_path_factory.mktemp("train"), Mock()
        histories, probabilities = train_folds(
            small_recipe(**changes), digits, FOLDS, number, folder / "state",
            [folder / f"fold_{fold}.keras" for fold in range(FOLDS)], progress)
        return folder, histories, probabilities, progress

    before = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    yield {1: train(1), 2: train(2), "all": train(2, reader="all"), "shifts": train(2, shifts=True),
           "students": train(2, pseudo_labels=True), "students, 1": train(1, pseudo_labels=True)}
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


@pytest.mark.parametrize(("one", "two"), [(1, 2), ("students, 1", "students")])
def test_the_number_of_workers_changes_no_byte(trained, one, two):
    (one, _, one_probabilities, _), (two, _, two_probabilities, _) = trained[one], trained[two]
    assert dict(states(one)) == dict(states(two))
    assert all(len(state) > 10 for name, state in states(one) if "pseudo_labels" not in name)
    for fold in range(FOLDS):
        assert weights(one / f"fold_{fold}.keras") == weights(two / f"fold_{fold}.keras")
        assert one_probabilities[fold].tobytes() == two_probabilities[fold].tobytes()


def test_training_learns(trained):
    for history in trained[1][1].values():
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


def test_students_join_teachers_who_train_as_without_them(digits, trained):
    (plain, _, _, _), (folder, histories, probabilities, _) = trained[1], trained["students"]
    kept = dict(states(folder))
    assert dict(states(plain)).items() <= kept.items()
    assert list(histories) == [Network(0, "rows"), Network(1, "grid_rows"),
                               Network(0, "rows", student=True), Network(1, "grid_rows", student=True)]
    for fold in range(FOLDS):
        teacher, both = (keras.models.load_model(path / f"fold_{fold}.keras") for path in (plain, folder))
        labels = np.frombuffer(kept[f"fold_{fold}_pseudo_labels.npz"]["labels"], np.float32).reshape(-1, 10)
        images = digits.unlabelled.astype("float32")
        np.testing.assert_allclose(teacher.predict(images, verbose=0), labels, atol=1e-5)
        images = digits.images[digits.split(fold)[1]].astype("float32")
        parts = [both.get_layer(name).predict(images, verbose=0)
                 for name in (READERS[fold], f"{READERS[fold]}_student")]
        np.testing.assert_allclose(parts[0], teacher.predict(images, verbose=0), atol=1e-5)
        assert np.abs(parts[1] - parts[0]).max() > 1e-3
        np.testing.assert_allclose(np.mean(parts, axis=0), probabilities[fold], atol=1e-5)
        np.testing.assert_allclose(both.predict(images, verbose=0), probabilities[fold], atol=1e-5)


def test_a_student_gets_the_labels_of_its_own_folds_teachers(tmp_path, monkeypatch):
    """A trainer is put in whose labels tell whose they are."""
    trainer, labels_of = Mock(), {}
    trainer.recipe = small_recipe(reader="all", pseudo_labels=True)
    trainer.initial_values.side_effect = lambda network: [
        np.array([network.fold, READERS.index(network.reader), network.student])]

    def train_epoch(network, epoch, values, labels):
        labels_of[network] = labels
        return [values[0] + 10], {"epoch": epoch + 1}

    trainer.train_epoch.side_effect = train_epoch
    trainer.label.side_effect = lambda fold, values: np.stack([its[0] for its in values.values()])
    monkeypatch.setattr(workers, "_trainer", trainer)
    monkeypatch.setattr(workers, "_states", workers._StateFiles(tmp_path))
    networks = [Network(fold, reader, student) for student in (False, True)
                for reader in READERS for fold in range(FOLDS)]
    for network in networks:
        workers._run_epoch(network)
    for network in networks:
        if network.student:
            # Of all kinds of teachers of the fold, after their epoch.
            assert labels_of[network].tolist() == [[network.fold + 10, 10 + kind, 10] for kind in range(3)]
        else:
            assert labels_of[network] is None
    assert trainer.label.call_count == FOLDS


def test_labels_are_what_the_teachers_average_to_over_shifts(digits):
    trainer = Trainer(small_recipe(shifts=True), digits)
    values = {network: trainer.initial_values(network)
              for network in (Network(1, reader) for reader in READERS[:2])}
    each = []
    for teacher, its_values in values.items():
        network = trainer._load(teacher.reader, its_values)[0]
        padded = np.pad(digits.unlabelled, ((0, 0), (1, 1), (1, 1))).astype("float32")
        each += [network.predict(padded[:, y:y + 28, x:x + 28], verbose=0)
                 for y, x in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
    assert np.ptp(each, axis=0).max() > 1e-3
    np.testing.assert_allclose(trainer.label(1, values), np.mean(each, axis=0), atol=1e-5)


def test_a_student_sees_all_unlabelled_images_and_no_row_of_its_validation_part(digits, monkeypatch):
    """Every image is made a number, to know it again."""
    numbers = np.arange(400 + len(digits.unlabelled))
    images = np.broadcast_to(numbers[:, None, None], (len(numbers), 28, 28)).astype("float32")
    numbered = dataclasses.replace(digits, images=images[:400], unlabelled=images[400:])
    labels = np.eye(10, dtype=np.float32)[np.arange(len(digits.unlabelled)) % 10]
    targets = np.concatenate([smooth(digits.labels, 0.05), labels])
    trainer = Trainer(small_recipe(epochs=1), numbered)
    network = Network(0, "rows", student=True)
    values = trainer.initial_values(network)
    seen = []

    def train_on_batch(images, its_targets):
        seen.extend(images[:, 0, 0].astype(int))
        np.testing.assert_array_equal(its_targets, targets[images[:, 0, 0].astype(int)])
        return 0, 0

    monkeypatch.setattr(trainer._of("rows")[0], "train_on_batch", train_on_batch)
    for epoch in range(40):
        trainer.train_epoch(network, epoch, values, labels)
    assert set(seen) == {*digits.split(0)[0], *numbers[400:]}
    assert len(seen) == 40 * trainer.steps * trainer.batch


def test_smoothed_labels_are_probabilities():
    targets = smooth(np.array([3, 0], np.uint8), 0.05)
    assert targets.dtype == np.float32
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(targets[0, 3], 0.955, rtol=1e-6)
    np.testing.assert_allclose(targets[1, 1:], 0.005, rtol=1e-6)


def test_the_tables_of_folds_with_three_networks(digits, trained):
    histories, probabilities = trained["all"][1:3]
    networks = rounds(small_recipe(reader="all"), FOLDS)[0]
    assert list(histories) == networks
    of_fold_1 = [histories[network] for network in networks[3:]]
    oof = np.full((400, 10), np.nan)
    for fold in range(FOLDS):
        oof[digits.split(fold)[1]] = probabilities[fold]
    folds = fold_metrics(digits, small_recipe(reader="all"), histories, oof)
    assert folds["fold_1"]["reader"] == "rows, grid_rows, grid_columns" and folds["fold_1"]["epochs"] == 3
    seconds = sum(epoch["seconds"] for history in of_fold_1 for epoch in history)
    assert folds["fold_1"]["seconds"] == round(seconds, 1)
    table = history_table(histories, networks)
    assert table["epoch"].tolist() == [1, 2, 3]
    assert table["loss"][0] == pytest.approx(np.mean([history[0]["loss"] for history in histories.values()]))
    last = [history[2]["val_accuracy"] for history in of_fold_1]
    assert table["val_accuracy_1"][2] == pytest.approx(np.mean(last))


def test_the_tables_of_folds_with_students(digits, trained):
    """The history is the students'; the time is that of teachers and students."""
    recipe, (_, histories, _, _) = small_recipe(pseudo_labels=True), trained["students"]
    teachers, students = rounds(recipe, FOLDS)
    table = history_table(histories, students)
    assert table["loss"].tolist() == pytest.approx(
        [np.mean([histories[network][epoch]["loss"] for network in students]) for epoch in range(3)])
    folds = fold_metrics(digits, recipe, histories, np.full((400, 10), 0.1))
    seconds = [epoch["seconds"] for network in (teachers[1], students[1]) for epoch in histories[network]]
    assert len(seconds) == 6 and folds["fold_1"]["seconds"] == round(sum(seconds), 1)


@pytest.mark.parametrize("run", [2, "students"])
def test_progress_is_told_of_every_epoch(trained, run):
    _, histories, _, progress = trained[run]
    progress.resumed.assert_not_called()
    told = sorted((*call.args[0], call.args[1]["epoch"]) for call in progress.finished.call_args_list)
    assert told == sorted((*network, epoch) for network in histories for epoch in (1, 2, 3))


@pytest.mark.parametrize("content", [b"", b"junk", None], ids=["empty", "junk", "cut off"])
def test_a_damaged_state_is_as_good_as_none(tmp_path, content):
    states, network = workers._StateFiles(tmp_path), Network(0, "rows")
    states.write(network, [np.arange(1000)], [{"epoch": 1}])
    states.write_pseudo_labels(0, np.zeros((100, 10)))
    assert states.read(network)[1] == [{"epoch": 1}] and states.pseudo_labels(0).shape == (100, 10)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-300] if content is None else content)
    assert states.read(network) == ([], []) and states.pseudo_labels(0) is None


def test_the_fingerprint_knows_the_code():
    stage = YAML().load((ROOT / "dvc.yaml").read_text())["stages"]["train"]
    named = {path.stem for path in map(Path, stage["deps"]) if path.parent == Path("pipeline")}
    # How accuracy is measured changes no network.
    assert set(CODE) == named - {"accuracy"} and set(COMPILED) < set(CODE)


def test_the_fingerprint_knows_recipe_and_data(digits):
    def of(recipe=small_recipe(), **changes):
        return fingerprint(recipe, dataclasses.replace(digits, **changes))

    assert of() == of() == of(small_recipe(reader="all", shifts=True))
    # Students depend on the kinds of their teachers, and on what is averaged for their labels.
    students = small_recipe(pseudo_labels=True)
    assert len({of(), of(students), of(students, unlabelled=digits.images[:9]),
                *(of(dataclasses.replace(students, **{name: value}))
                  for name, value in (("reader", "all"), ("shifts", True)))}) == 5
    changed = digits.images.copy()
    changed[0, 0, 0] ^= 1
    assert len({of(), of(small_recipe(seed=1)), of(small_recipe(epochs=4)), of(images=changed),
                of(folds=1 - digits.folds), of(unlabelled=changed[:9])}) == 6


def test_auto_precision_is_one_of_the_two():
    assert best_precision() in ("float32", "bfloat16")


# The stage


@pytest.fixture
def folder(digits, tmp_path):
    """A project folder in which `python -m pipeline.stages.train` can run."""
    def make(name):
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True)
        # The last of the images for students is one that `prepare` has held out.
        arrays = dataclasses.asdict(digits)
        unlabelled = arrays.pop("unlabelled")
        np.savez(folder / "data/digits.npz", test_images=np.concatenate([unlabelled, digits.images[:1]]),
                 test_held_out=np.arange(len(unlabelled) + 1) == len(unlabelled), **arrays)
        params = YAML(typ="safe").load(ROOT / "params.yaml")
        params["prepare"]["folds"] = FOLDS
        params["model"].update(reader="turns", layers=1, units=16, grid_layers=1, grid_units=16)
        params["train"].update(
            epochs=6, batch_size=32, pseudo_labels=True, precision="float32", workers=FOLDS)
        YAML(typ="safe").dump(params, folder / "params.yaml")
        return folder

    return make


def test_a_killed_training_goes_on_as_if_nothing_had_happened(folder):
    whole, killed = folder("whole"), folder("killed")
    done = run_python("-m", "pipeline.stages.train", cwd=whole)
    assert done.returncode == 0, done.stderr

    # First among the teachers, then among the students.
    for files in ("fold_*.npz", "fold_*_student.npz"):
        with subprocess.Popen([sys.executable, "-m", "pipeline.stages.train"], cwd=killed, text=True,
                              stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
            while not glob.glob(str(killed / "data/training_state/*" / files)):
                assert process.poll() is None
                time.sleep(0.005)
            process.kill()
            # The pipe ends when the workers, who share it, have followed.
            output, _ = process.communicate()
        assert not (killed / "data/oof.npz").exists()
        assert not (killed / "metrics").exists()

    assert "goes on after epoch" in output

    done = run_python("-m", "pipeline.stages.train", cwd=killed)
    assert done.returncode == 0, done.stderr
    assert ", student: goes on after epoch" in done.stdout and "200 pseudo-labelled images" in done.stdout
    assert not (killed / "data/training_state").exists()
    ours, theirs = (np.load(path / "data/oof.npz") for path in (killed, whole))
    assert all(ours[name].tobytes() == theirs[name].tobytes()
               for name in ("probabilities", "labels", "folds", "test_trained_on"))
    assert ours["test_trained_on"].tolist() == [True] * 200 + [False]
    for fold in range(FOLDS):
        name = f"data/checkpoints/fold_{fold}.keras"
        assert weights(killed / name) == weights(whole / name)
    assert (killed / "metrics/history.csv").read_bytes() == (whole / "metrics/history.csv").read_bytes()
    assert not [path for path in killed.rglob(".*")]
    # The table is of the students, as the last lines of the log are.
    table = pd.read_csv(killed / "metrics/history.csv")
    assert len(table) == 6
    for fold, reader in enumerate(READERS[:FOLDS]):
        accuracy = table[f"val_accuracy_{fold}"].iloc[-1]
        assert re.search(rf"{reader}, student, epoch 6/6: .*validation accuracy {accuracy:.4f}", done.stdout)
