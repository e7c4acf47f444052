"""The compiled code's cache: damaged, or where nothing can be written, it is as good as none."""

import contextlib
import stat
from pathlib import Path

import pytest
import tensorflow as tf

from pipeline.bilstm import jit, kernels


def add(a, b):
    return a + b


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: b"junk",
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: bytes(len(content)),
    ],
    ids=["empty", "cut off", "junk", "a bit", "zeros"],
)
@pytest.mark.parametrize("which", ["*.nbi", "*.nbc"])
def test_a_damaged_cache_is_as_good_as_none(tmp_path, monkeypatch, which, damage):
    monkeypatch.setattr(jit, "_FOLDER", str(tmp_path))
    assert jit.compiled(add)(1, 2) == 3
    (file,) = tmp_path.rglob(which)
    file.write_bytes(damage(file.read_bytes()))
    again = jit.compiled(add)
    assert again(1, 2) == 3 and again.stats.cache_misses and not again.stats.cache_hits
    once_more = jit.compiled(add)
    assert once_more(1, 2) == 3 and once_more.stats.cache_hits


def test_without_a_home_the_cache_is_in_a_folder_of_this_user_alone(tmp_path, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(jit.Path, "home", nobody)
    monkeypatch.setattr(jit.numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(jit.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(jit, "__file__", "/proc/none/jit.py")
    folder = Path(jit._folder()).parent
    assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)  # what another user could write there would be run
    assert Path(jit._folder()).parent != folder


def test_what_another_process_compiles_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "_FOLDER", str(tmp_path))
    other = contextlib.ExitStack()  # locks of one process, too, exclude each other if they are of two files
    assert other.enter_context(jit.unless_another_process("BilstmBackward_float32"))
    compiled = []

    def compile_body(body):
        compiled.append(body.__name__)
        if len(compiled) == 2:
            other.close()
        return body

    monkeypatch.setattr(kernels, "_cfunc", compile_body)
    bodies = kernels.compile_bodies.__wrapped__(tf.float32)
    assert compiled == ["_forward_float32", "_pack_float32", "_backward_float32"]
    assert {name: body.__name__ for name, body in bodies.items()} == {
        "BilstmBackward": "_backward_float32",
        "BilstmForward": "_forward_float32",
        "BilstmPack": "_pack_float32",
    }


def test_where_files_cannot_be_locked_every_process_compiles(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "_FOLDER", str(tmp_path / "none"))
    with jit.unless_another_process("a") as one, jit.unless_another_process("a") as other:
        assert one and other
