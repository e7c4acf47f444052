"""The cache of compiled code: one folder, announced compilations, and clear messages."""

import importlib
import runpy
import shutil
from pathlib import Path

import pytest
from fastlstm import jit


def test_a_compilation_is_announced_and_later_uses_load_it(tmp_path, monkeypatch, capsys):
    """With a small function in place of the operations, which take a minute."""
    monkeypatch.setattr(jit, "FOLDER", tmp_path)
    (tmp_path / "add_one.py").write_text("def body(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(tmp_path)  # Numba imports the module where it loads the function
    hits = []
    for announced in (1, 0):
        body = importlib.reload(importlib.import_module("add_one")).body
        function = jit.compile_and_announce("float32", body, "float64(float64)")
        assert capsys.readouterr().err.count("fastlstm: compiling for") == announced
        hits.append(function.cache_hits)
    assert hits == [0, 1]


def test_the_folder_is_named_by_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", str(tmp_path / "a" / "b"))
    assert jit._folder() == tmp_path / "a" / "b" / jit.FOLDER.name
    monkeypatch.setattr(jit, "ISA", "another")
    assert jit._folder().name != jit.FOLDER.name
    monkeypatch.undo()
    # Numba does not share what it compiled between copies of a file.
    ignore = shutil.ignore_patterns("__pycache__")
    copy = shutil.copytree(Path(jit.__file__).parent, tmp_path / "copy", ignore=ignore)
    monkeypatch.setattr(jit, "__file__", copy / "jit.py")
    assert jit._folder().name != jit.FOLDER.name


def test_without_numbas_compiler_one_line_gives_the_reason(monkeypatch):
    monkeypatch.setattr(jit.numba.config, "DISABLE_JIT", 1)
    with pytest.raises(ImportError, match="fastlstm needs Numba's compiler: unset NUMBA_DISABLE_JIT"):
        runpy.run_path(jit.__file__)
