"""An epoch of a member: a pure function of parameters, data, member and state."""

import pickle

import numpy as np
import pytest
import tensorflow as tf
from helpers import small_params

from pipeline.folds import TrainingData
from pipeline.training import trainer
from pipeline.training.members import Member
from pipeline.training.state import State
from pipeline.training.trainer import export_fold, initial_values, train_epoch

ROWS = Member(0, "rows", 1)


def test_initial_weights_are_a_function_of_the_member(digits):
    def start(*member):
        values = initial_values(small_params(), digits, Member(*member))
        return [value.tobytes() for value in values]

    first = start(0, "grid_rows", 1)
    assert first == start(0, "grid_rows", 1)
    for other in ((1, "grid_rows", 1), (0, "grid_rows", 2), (0, "grid_columns", 1)):
        assert start(*other)[0] != first[0]


@pytest.mark.slow
def test_an_epoch_is_a_function_of_what_it_is_given(digits):
    params = small_params()
    first = train_epoch(params, digits, ROWS, State())
    second = train_epoch(params, digits, ROWS, first)
    train_epoch(params, digits, Member(1, "grid_rows", 1), State())
    built = trainer._shared.cache_info().misses
    again = train_epoch(*pickle.loads(pickle.dumps((params, digits, ROWS, first))))
    # Another worker's arguments are other objects, but no reason to build the network again.
    assert trainer._shared.cache_info().misses == built
    assert [value.tobytes() for value in again.values] == [value.tobytes() for value in second.values]
    assert [epoch["epoch"] for epoch in again.history] == [1, 2]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "images"):
        assert again.history[1][name] == second.history[1][name]


@pytest.fixture
def seen(monkeypatch):
    """Epochs that train nothing; returns the images and targets of each."""
    epochs = []

    class Train:
        def __call__(self, images, targets):
            epochs.append((images, targets))
            return tf.zeros(2)

        def get_concrete_function(self):
            pass

    build = trainer._shared
    monkeypatch.setattr(trainer, "_shared", lambda *arguments: (*build(*arguments)[:2], Train()))
    monkeypatch.setattr(trainer, "_predict", lambda model, images: np.full((len(images), 10), 0.1))
    return epochs


@pytest.mark.parametrize(
    ("augment", "distorted"),
    [
        ({"enabled": False}, [False, False, False]),
        ({"undistorted_epochs": 0}, [True, True, True]),
        ({"undistorted_epochs": 1}, [True, True, False]),
        ({"undistorted_epochs": 3}, [True, True, False]),  # at most half
    ],
)
def test_all_epochs_but_the_last_ones_are_augmented(digits, seen, augment, distorted):
    params = small_params(augment=augment)
    state = State()
    for _ in range(3):
        state = train_epoch(params, digits, ROWS, state)
    assert [bool((images % 1 != 0).any()) for images, _ in seen] == distorted


def test_an_epoch_sees_only_rows_of_the_other_folds_each_with_its_label(digits, seen):
    """The pixels of each image are its row's number."""
    images = np.broadcast_to(np.arange(400)[:, None, None], (400, 28, 28)).astype("float32")
    numbered = TrainingData(images, digits.labels, digits.folds)
    params = small_params(augment={"enabled": False})
    train_epoch(params, numbered, ROWS, State())
    ((images, targets),) = seen
    rows = images[:, 0, 0].astype(int)
    assert len(set(rows)) == len(rows) == 160 and set(rows) <= set(digits.split(0)[0])
    assert list(rows) != sorted(rows)
    np.testing.assert_array_equal(targets.argmax(axis=1), digits.labels[rows])
    assert targets.dtype == np.float32 and (np.sort(targets) == [0.0] * 9 + [1.0]).all()


@pytest.mark.slow
def test_the_exported_network_is_the_one_that_was_validated(digits):
    params = small_params(train={"epochs": 1})
    state = train_epoch(params, digits, ROWS, State())
    content, probabilities = export_fold(params, digits, 0, {ROWS: state})
    rows = digits.split(0)[1]
    assert content.startswith(b"PK") and probabilities.shape == (len(rows), 10)
    of_label = probabilities[np.arange(len(rows)), digits.labels[rows]]
    assert -np.log(of_label).mean() == pytest.approx(state.history[-1]["val_loss"], rel=1e-5)
