"""The cache of compiled code: one folder, announced compilations, and clear messages."""

import pytest
from fastlstm import jit
from stock import run_python

USE = "import numpy, fastlstm; print(fastlstm.LSTM(3)(numpy.ones((1, 2, 3), 'float32')).shape)"


@pytest.mark.forced_isa
def test_the_first_use_is_announced_and_two_processes_share_it(tmp_path):
    first = run_python("-c", USE, NUMBA_CACHE_DIR=str(tmp_path))
    assert "(1, 3)" in first.stdout and first.stderr.count("fastlstm: compiling for") == 1
    second = run_python("-c", USE, NUMBA_CACHE_DIR=str(tmp_path))
    assert "(1, 3)" in second.stdout and "compiling" not in second.stderr
    assert len(list(tmp_path.iterdir())) == 1


def test_the_folder_is_named_by_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", str(tmp_path / "a" / "b"))
    assert jit._folder() == tmp_path / "a" / "b" / jit.FOLDER.name
    monkeypatch.setattr(jit, "ISA", "another")
    assert jit._folder().name != jit.FOLDER.name


def test_without_numbas_compiler_one_line_gives_the_reason():
    done = run_python("-c", "import fastlstm", NUMBA_DISABLE_JIT="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: fastlstm needs Numba's compiler")
