"""The parameters of `params.yaml`: names, types, allowed values. Every stage loads them here."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.files import PipelineError

PARAMS_FILE = "params.yaml"


def _whole(low, high):
    return Annotated[int, Field(ge=low, le=high,
                                description=f"a whole number from {low} to {high}")]


def _number(low, high):
    return Annotated[float, Field(ge=low, le=high, description=f"a number from {low} to {high}")]


def _one_of(*words):
    return Annotated[Literal[words], Field(description=", ".join(words))]


YesNo = Annotated[bool, Field(description="true, false")]


class _Section(BaseModel):
    # Strict: "30" is no number and 1 is no bool; a YAML typo must not pass as something else.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Download(_Section):
    source: _one_of("auto", "kaggle", "mnist")
    competition: Annotated[str, Field(
        min_length=1, description="a competition's slug or address, such as digit-recognizer")]
    seed: _whole(0, 2**31 - 1)


class Prepare(_Section):
    folds: _whole(2, 100)
    hold_out_mnist_test: YesNo
    limit: Annotated[int | None, Field(ge=1, description="null, or a number of rows from 1")]


class Model(_Section):
    reader: _one_of("rows", "grid_rows", "grid_columns", "turns", "all")
    layers: _whole(1, 16)
    units: _whole(1, 4096)
    grid_layers: _whole(1, 16)
    grid_units: _whole(1, 4096)
    readout: _one_of("middle", "last", "mean")
    normalize: YesNo
    dropout: _number(0, 0.9)
    shifts: YesNo


class Train(_Section):
    epochs: _whole(1, 10000)
    batch_size: _whole(1, 42000)
    learning_rate: Annotated[float, Field(
        gt=0, le=1, description="a number above 0, at most 1")]
    warmup: _number(0, 0.9)
    weight_decay: _number(0, 1)
    label_smoothing: _number(0, 0.9)
    augment: YesNo
    pseudo_labels: YesNo
    precision: _one_of("auto", "float32", "bfloat16")
    engine: _one_of("local")
    workers: Annotated[Literal["auto"] | Annotated[int, Field(ge=1, le=1024)], Field(
        description="auto, or a whole number from 1 to 1024")]


class Article(_Section):
    steps: _whole(1, 1_000_000)
    units: _whole(1, 4096)
    readout: _one_of("middle", "last", "mean")
    learning_rate: Annotated[float, Field(
        gt=0, le=1, description="a number above 0, at most 1")]
    batch_size: _whole(1, 60_000)
    seed: _whole(0, 2**31 - 1)


class Params(_Section):
    seed: _whole(0, 2**31 - 1)
    download: Download
    prepare: Prepare
    model: Model
    train: Train
    article: Article


def load_params(path=PARAMS_FILE):
    """Read and check the parameters.

    Raises:
        PipelineError: names each key that is wrong, its value and what is allowed.
    """
    try:
        content = YAML(typ="safe").load(Path(path))
    except FileNotFoundError:
        raise PipelineError(f"{path}: there is no such file here; run from the project's folder")
    except (YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not valid YAML: {' '.join(str(error).split())}")
    if not isinstance(content, dict):
        raise PipelineError(f"{path}: must hold sections such as 'train:', found {content!r}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        found = {_describe(problem) for problem in error.errors()}
        raise PipelineError(f"{path}: " + "; ".join(sorted(found)))


def _describe(problem):
    """One problem as pydantic reports it, in one clause."""
    names, section, field = [], Params, None
    for name in problem["loc"]:
        # Past the field's name come pydantic's own labels of a union's members.
        if section is None:
            break
        names.append(str(name))
        field = section.model_fields.get(name)
        annotation = field.annotation if field else None
        is_section = isinstance(annotation, type) and issubclass(annotation, _Section)
        siblings, section = section.model_fields, annotation if is_section else None
    key = ".".join(names)
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(names[-1], siblings, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(siblings)}"
        return f"unknown key {key!r}, {hint}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    if section is not None:
        return f"{key} is {problem['input']!r}, it must hold: {', '.join(section.model_fields)}"
    return f"{key} is {problem['input']!r}, allowed: {field.description}"
