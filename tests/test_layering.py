"""Imports run one way."""

import ast

import pytest
from helpers import ROOT

# From the bottom up. A module may import from its own level and from lower ones.
LEVELS = [
    {"files", "paths", "machine", "git"},
    {"params", "competition"},
    {"mnist", "folds", "augment", "networks", "metrics", "article", "reading"},
    {"training", "report", "kaggle"},
    {"stages"},
]


def modules():
    """Each module's dotted name within `pipeline`, and the file's syntax tree."""
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "pipeline").with_suffix("").parts).removesuffix("__init__")
        if name:
            yield name.rstrip("."), ast.parse(path.read_text())


def imported(tree):
    """The dotted names within `pipeline` that a module imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # Each is a module, or something in the module that it is imported from.
            names = [name if name.removeprefix("pipeline.") in MODULES else node.module for name in names]
        else:
            continue
        yield from (name.removeprefix("pipeline.") for name in names if name.startswith("pipeline."))


def package(name):
    return name.partition(".")[0]


MODULES = dict(modules())
IMPORTS = [(name, target) for name, tree in MODULES.items() for target in imported(tree)]


@pytest.mark.parametrize(("name", "target"), IMPORTS)
def test_no_import_goes_up(name, target):
    level = {package: number for number, packages in enumerate(LEVELS) for package in packages}
    assert level[package(target)] <= level[package(name)]


def test_there_is_no_circle():
    uses = {}
    for name, target in IMPORTS:
        uses.setdefault(name, set()).add(target)
    done = set()

    def visit(name, path=()):
        assert name not in path, f"{' -> '.join([*path, name])}"
        if name not in done:
            for target in uses.get(name, ()):
                visit(target, (*path, name))
            done.add(name)

    for name in uses:
        visit(name)


def test_only_stages_know_where_files_lie():
    assert {package(name) for name, target in IMPORTS if target == "paths"} <= {"stages", "params"}


def test_tensorflow_is_imported_only_where_networks_are_built_or_run():
    def loads(tree):
        names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        return {"keras", "tensorflow"} & {(name or "").partition(".")[0] for name in names}

    assert {name for name, tree in MODULES.items() if loads(tree)} == {
        "article", "augment", "networks", "reading", "training.optimizer", "training.trainer"}  # fmt: skip


def test_stages_are_thin():
    for path in (ROOT / "pipeline/stages").glob("[a-z]*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
