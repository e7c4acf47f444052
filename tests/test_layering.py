"""Imports run one way, so that each package can be read without those above it."""

import ast

from helpers import ROOT

# From the bottom up. A module may import from its own level and from lower ones.
LEVELS = [
    {"files", "paths", "machine", "git", "install"},
    {"params", "competition"},
    {"mnist", "folds", "augment", "architectures", "prediction", "metrics", "article"},
    {"training", "report", "kaggle"},
    {"stages"},
]
LEVEL = {package: number for number, packages in enumerate(LEVELS) for package in packages}


def imports():
    """Yield each module's name within `pipeline` and the name of a module or object that it imports."""
    for path in (ROOT / "pipeline").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "pipeline").with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if name.startswith("pipeline."):
                    yield module, name.removeprefix("pipeline.")


IMPORTS = [(module, name, module.partition(".")[0], name.partition(".")[0]) for module, name in imports()]


def test_no_import_goes_up():
    assert len(IMPORTS) > 100
    assert [(module, name) for module, name, user, used in IMPORTS if LEVEL[used] > LEVEL[user]] == []


def test_only_stages_know_the_paths_of_files():
    assert {user for _, _, user, used in IMPORTS if used == "paths"} <= {"stages", "params"}


def test_stages_are_thin():
    for path in (ROOT / "pipeline/stages").glob("[a-z]*.py"):
        assert len(path.read_text().splitlines()) <= 80, path.name
