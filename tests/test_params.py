"""params.yaml: an error of one line names the key and the allowed values."""

import pytest
from helpers import ROOT, refusal
from ruamel.yaml import YAML

from pipeline.files import PipelineError
from pipeline.params import load_params

COMMITTED = YAML(typ="safe").load(ROOT / "params.yaml")
KEYS = [
    f"{section}.{name}" if name else section
    for section, content in COMMITTED.items()
    for name in (content if isinstance(content, dict) else [""])
]


@pytest.fixture
def changed(tmp_path):
    """Writes the committed parameters with other values and returns the file's path; `...` removes a key."""

    def write(values):
        content = YAML(typ="safe").load(ROOT / "params.yaml")
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            parameters = content[section] if section else content
            if value is ...:
                del parameters[name]
            else:
                parameters[name] = value
        YAML(typ="safe").dump(content, tmp_path / "params.yaml")
        return tmp_path / "params.yaml"

    return write


def test_the_committed_file_is_valid():
    params = load_params(ROOT / "params.yaml")
    assert params.model_dump() == COMMITTED
    assert params.with_values({"seed": 1, "train.epochs": 2}).train.epochs == 2
    with pytest.raises(PipelineError, match=r"train\.epochs is 0, allowed: a whole number from 1"):
        params.with_values({"train.epochs": 0})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prepare.limit", 1),
        ("compute.workers", 1),
        ("train.learning_rate", 1),
        ("model.readout", "middle"),
        ("download.source", "folder"),
        ("download.competition", "https://www.kaggle.com/competitions/digit-recognizer"),
    ],
)
def test_allowed(changed, key, value):
    section, name = key.split(".")
    assert getattr(getattr(load_params(changed({key: value})), section), name) == value


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("seed", "2026", "a whole number from 0"),
        ("download.source", "Kaggle", "auto, kaggle, mnist, mnist-60k, folder"),
        ("prepare.hold_out_mnist_test", "yes", "true, false"),
        ("prepare.limit", 0, "null, or a number of rows from 1"),
        ("model.units", 1.5, "a whole number from 1"),
        ("model.readout", "first", "middle, last, mean"),
        ("train.epochs", True, "a whole number from 1"),
        ("train.batch_size", 42_001, "a whole number from 1 to 42000"),
        ("train.learning_rate", float("nan"), "a number above 0, at most 1"),
        ("augment.enabled", 1, "true, false"),
        ("augment.shift", -1, "a number from 0 to 14"),
        ("compute.workers", "all", "auto, or 1 to 1024"),
        ("compute.workers", True, "auto, or 1 to 1024"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(changed, key, value, allowed):
    assert f"{key} is {value!r}, allowed: {allowed}" in refusal(load_params, changed({key: value}))


def test_no_key_takes_a_list_or_may_be_missing(changed):
    message = refusal(load_params, changed({key: [] for key in KEYS}))
    assert [key for key in KEYS if f"{key} is [], allowed: " not in message] == []
    assert "None" not in message
    message = refusal(load_params, changed(dict.fromkeys(KEYS, ...)))
    assert [key for key in KEYS if f"key '{key}' is missing" not in message] == []


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.epoch", "did you mean 'epochs'?"),
        ("trian", "did you mean 'train'?"),
        ("model.zzz", "allowed: architecture, layers, units"),
    ],
)
def test_unknown_key(changed, key, hint):
    assert f"unknown key '{key}', {hint}" in refusal(load_params, changed({key: 1}))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such file"),
        (b"", "must contain the sections download, prepare"),
        (b"train: [1\n", "not valid YAML"),
        (b"seed: 1\nseed: 2\n", "not valid YAML"),
        (b"seed: \xff\n", "not valid YAML"),
        (b"train: 3\n", "train is 3, allowed: a section with epochs, batch_size"),
    ],
)
def test_no_parameters_file(tmp_path, content, says):
    if content is not None:
        (tmp_path / "params.yaml").write_bytes(content)
    assert says in refusal(load_params, tmp_path / "params.yaml")
