"""params.yaml: what is not allowed is refused in one line that says what is."""

from pathlib import Path

import pytest
from helpers import ROOT
from ruamel.yaml import YAML

from pipeline.files import PipelineError
from pipeline.params import load_params

COMMITTED = YAML(typ="safe").load(ROOT / "params.yaml")
KEYS = [
    f"{section}.{name}"
    for section, content in COMMITTED.items()
    if isinstance(content, dict)
    for name in content
] + [name for name, content in COMMITTED.items() if not isinstance(content, dict)]


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """Loads the committed parameters after `change` was applied to the section that holds `key`."""

    monkeypatch.chdir(tmp_path)

    def load(key, change):
        content = YAML(typ="safe").load(ROOT / "params.yaml")
        section = content
        *sections, name = key.split(".")
        for part in sections:
            section = section[part]
        change(section, name)
        YAML(typ="safe").dump(content, Path("params.yaml"))
        return load_params("params.yaml")

    return load


def refusal(load, *arguments):
    with pytest.raises(PipelineError) as error:
        load(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_committed_file_is_valid():
    params = load_params(ROOT / "params.yaml")
    assert (params.seed, params.prepare.limit) == (COMMITTED["seed"], None)
    assert params.train.learning_rate == COMMITTED["train"]["learning_rate"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prepare.limit", None),
        ("prepare.limit", 1),
        ("prepare.hold_out_mnist_test", False),
        ("compute.workers", "auto"),
        ("compute.workers", 1),
        ("compute.ray_address", "auto"),
        ("augment.enabled", False),
        ("train.learning_rate", 1),
        ("train.precision", "bfloat16"),
        ("model.readout", "middle"),
        ("download.source", "mnist"),
        ("download.competition", "https://www.kaggle.com/competitions/digit-recognizer"),
    ],
)
def test_allowed(changed, key, value):
    section, name = key.split(".")
    params = changed(key, lambda content, name: content.__setitem__(name, value))
    assert getattr(getattr(params, section), name) == value


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("seed", "2026", "a whole number from 0"),
        ("seed", -1, "a whole number from 0"),
        ("download.source", "Kaggle", "auto, kaggle, mnist"),
        ("download.competition", "", "a competition's slug or address"),
        ("prepare.folds", 1, "a whole number from 2"),
        ("prepare.folds", True, "a whole number from 2"),
        ("prepare.folds", 5.0, "a whole number from 2"),
        ("prepare.hold_out_mnist_test", "yes", "true, false"),
        ("prepare.hold_out_mnist_test", 1, "true, false"),
        ("prepare.limit", 0, "null, or a number of rows from 1"),
        ("prepare.limit", True, "null, or a number of rows from 1"),
        ("model.architecture", "columns", "rows, grid_rows, grid_columns, cycle, all"),
        ("model.layers", 0, "a whole number from 1"),
        ("model.units", 1.5, "a whole number from 1"),
        ("model.readout", "first", "middle, last, mean"),
        ("model.tta", 5, "true, false"),
        ("train.epochs", "30", "a whole number from 1"),
        ("train.epochs", True, "a whole number from 1"),
        ("train.epochs", 0, "a whole number from 1"),
        ("train.batch_size", 42_001, "a whole number from 1 to 42000"),
        ("train.learning_rate", 0, "a number above 0, at most 1"),
        ("train.learning_rate", True, "a number above 0, at most 1"),
        ("train.learning_rate", float("nan"), "a number above 0, at most 1"),
        ("train.learning_rate", "1e-3", "a number above 0, at most 1"),
        ("augment.enabled", "on", "true, false"),
        ("augment.rotation", 181, "a number from 0 to 180"),
        ("augment.shift", -1, "a number from 0 to 14"),
        ("train.precision", "float16", "auto, float32, bfloat16"),
        ("compute.engine", "spark", "local"),
        ("compute.ray_address", "", "null, auto, or an address such as 10.0.0.1:6379"),
        ("compute.worker_memory", 0, "a number from 0.1 to 1024"),
        ("compute.workers", 0, "auto, or a whole number from 1"),
        ("compute.workers", "all", "auto, or a whole number from 1"),
        ("compute.workers", True, "auto, or a whole number from 1"),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(changed, key, value, allowed):
    message = refusal(changed, key, lambda section, name: section.__setitem__(name, value))
    assert f"{key} is {value!r}, allowed: " in message
    assert allowed in message


@pytest.mark.parametrize("key", KEYS)
def test_no_key_takes_a_list_or_may_be_missing(changed, key):
    assert f"{key} is [], allowed: " in refusal(
        changed, key, lambda section, name: section.__setitem__(name, [])
    )
    assert f"key '{key}' is missing" in refusal(changed, key, lambda section, name: section.pop(name))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.epoch", "did you mean 'epochs'?"),
        ("train.learning-rate", "did you mean 'learning_rate'?"),
        ("prepare.fold", "did you mean 'folds'?"),
        ("trian", "did you mean 'train'?"),
        ("model.zzz", "allowed: architecture, layers, units"),
    ],
)
def test_unknown_key(changed, key, hint):
    message = refusal(changed, key, lambda section, name: section.__setitem__(name, 1))
    assert f"unknown key '{key}', {hint}" in message


def test_all_mistakes_are_named_at_once(changed):
    message = refusal(changed, "train.epochs", lambda train, _: train.update(epochs=0, batch_size="x", lr=1))
    assert all(f"train.{name}" in message for name in ("epochs", "batch_size", "lr"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must hold sections"),
        ("- 1\n", "must hold sections"),
        ("train: [1\n", "not valid YAML"),
        ("seed: 1\nseed: 2\n", "not valid YAML"),
        ("\tseed: 1\n", "not valid YAML"),
        ("train: 3\n", "train is 3, it must hold: epochs, batch_size"),
        (b"seed: \xff\n", "not valid YAML"),
    ],
)
def test_no_parameters_file(tmp_path, text, says):
    path = tmp_path / "params.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(load_params, path)
    assert message.startswith(f"{path}: ") and says in message


def test_missing_file(tmp_path):
    assert "there is no such file" in refusal(load_params, tmp_path / "params.yaml")
