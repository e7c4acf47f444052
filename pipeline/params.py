"""The parameters of `params.yaml`: names, types and allowed values; frozen and hashable."""

import difflib
import reprlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML

from pipeline.files import PipelineError, one_line
from pipeline.paths import PARAMS


def _whole(low, high):
    return Annotated[int, Field(ge=low, le=high, description=f"a whole number from {low} to {high}")]


def _number(low, high):
    return Annotated[float, Field(ge=low, le=high, description=f"a number from {low} to {high}")]


def _one_of(*words):
    return Annotated[Literal[words], Field(description=", ".join(words))]


YesNo = Annotated[bool, Field(description="true, false")]
Seed = _whole(0, 2**31 - 1)
Readout = _one_of("middle", "last", "mean")
LearningRate = Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")]


class _Section(BaseModel):
    # Strict: "30" is not a number and 1 is not a bool.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Download(_Section):
    source: _one_of("auto", "kaggle", "mnist", "mnist-60k", "folder")
    folder: Annotated[str, Field(min_length=1, description="a path, such as /home/me/Downloads")]
    competition: Annotated[str, Field(min_length=1, description="a name, such as digit-recognizer")]
    seed: Seed


class Prepare(_Section):
    folds: _whole(2, 100)
    hold_out_mnist_test: YesNo
    limit: Annotated[int | None, Field(ge=1, description="null, or a number of rows from 1")]


class Model(_Section):
    # The name is checked by `training.members`, because only `architectures.py` lists all.
    architecture: Annotated[str, Field(description="a name, such as cycle")]
    layers: _whole(1, 16)
    units: _whole(1, 4096)
    grid_layers: _whole(1, 16)
    grid_units: _whole(1, 4096)
    readout: Readout
    normalize: YesNo
    dropout: _number(0, 0.9)
    test_shift: _whole(0, 4)


class Augment(_Section):
    enabled: YesNo
    undistorted_epochs: _whole(0, 10000)
    rotation: _number(0, 180)
    scaling: _number(0, 0.9)
    shear: _number(0, 2)
    shift: _number(0, 14)
    displacement: _number(0, 14)


class Train(_Section):
    epochs: _whole(1, 10000)
    batch_size: _whole(1, 42000)
    learning_rate: LearningRate
    warmup: _number(0, 0.9)
    weight_decay: _number(0, 1)
    precision: _one_of("auto", "float32", "bfloat16")
    seeds: _whole(1, 100)


class Compute(_Section):
    engine: _one_of("local", "ray")
    workers: Annotated[Literal["auto"] | _whole(1, 1024), Field(description="auto, or 1 to 1024")]
    ray_address: Annotated[
        str | None, Field(min_length=1, description="null, auto, or an address with its port")
    ]
    worker_cpus: _whole(1, 1024)
    worker_memory: _number(0.1, 1024)


class Article(_Section):
    steps: _whole(1, 1_000_000)
    units: _whole(1, 4096)
    readout: Readout
    learning_rate: LearningRate
    batch_size: _whole(1, 60_000)
    seed: Seed


class Params(_Section):
    seed: Seed
    download: Download
    prepare: Prepare
    model: Model
    augment: Augment
    train: Train
    compute: Compute
    article: Article

    def with_values(self, values: dict) -> "Params":
        """The same parameters with other values, by keys such as `seed` or `train.epochs`; checked."""
        content = self.model_dump()
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            (content[section] if section else content)[name] = value
        return _validate(content, PARAMS)


SECTIONS = {
    name: field.annotation.model_fields for name, field in Params.model_fields.items() if name != "seed"
}


def load_params(path: str | Path = PARAMS) -> Params:
    """Read the parameters; an error names each key that is wrong, its value and what is allowed."""
    try:
        content = YAML(typ="safe").load(Path(path).read_text())
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such file here; run from the project's folder") from None
    # Besides its own errors, the library passes on those of Python's dates, numbers and recursion.
    except Exception as error:
        raise PipelineError(f"{path}: not valid YAML: {one_line(str(error), 160)}") from error
    return _validate(content, path)


def _validate(content, path):
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        problems = sorted({_describe(**problem) for problem in error.errors(include_url=False)})
        problems.sort(key=lambda text: text.endswith(" is missing"))
        raise PipelineError(f"{path}: {'; '.join(problems)}") from None


def _describe(type, loc, input, **_):
    """Describe a problem that pydantic reports, in one clause."""
    if not loc:
        return f"must contain the sections {', '.join(SECTIONS)}"
    if loc[0] in SECTIONS and len(loc) > 1:  # after the name may come the members of a union
        (section, name), fields = loc[:2], SECTIONS[loc[0]]
        key = f"{section}.{one_line(str(name), 40)}"
    else:
        name, fields = loc[0], Params.model_fields
        key = one_line(str(name), 40)
    if name not in fields:
        close = difflib.get_close_matches(str(name), fields, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(fields)}"
        return f"unknown key {key!r}, {hint}"
    if type == "missing":
        return f"key {key!r} is missing"
    allowed = fields[name].description or f"a section with {', '.join(SECTIONS[name])}"
    # Aliases can make the whole text of a value endless.
    return f"{key} is {one_line(reprlib.repr(input), 60)}, allowed: {allowed}"
