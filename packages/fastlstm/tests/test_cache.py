"""The compiled code's cache: damaged, or where nothing can be written, it is as good as none."""

import contextlib
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tensorflow as tf
from fastlstm import jit, kernels


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
    other = contextlib.ExitStack()  # within a process, too, one lock excludes another
    assert other.enter_context(jit.lock("BilstmBackward_float32", wait=False))
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


@pytest.mark.parametrize(("folder", "patience", "held"), [("none", 120, True), ("", 0, False)])
def test_without_locks_or_patience_every_process_compiles(tmp_path, monkeypatch, folder, patience, held):
    """Nothing can be locked in a folder that is not there."""
    monkeypatch.setattr(jit, "_FOLDER", str(tmp_path / folder))
    monkeypatch.setattr(kernels, "PATIENCE", patience)
    monkeypatch.setattr(kernels, "_cfunc", lambda body: body)
    with jit.lock("BilstmPack_float32", wait=False), jit.lock("BilstmPack_float32", wait=False) as again:
        assert again == held
        assert len(kernels.compile_bodies.__wrapped__(tf.float32)) == 3


def test_entries_saved_at_the_same_time_are_all_kept(tmp_path, monkeypatch):
    """Without a lock, one writer's index would replace another's, and point to the other's data."""
    monkeypatch.setattr(jit, "_FOLDER", str(tmp_path))

    def file():
        return jit._CacheFile(str(tmp_path), "function", b"stamp of the source")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: file().save(number, f"code {number}"), range(64)))
    assert [file().load(number) for number in range(64)] == [f"code {number}" for number in range(64)]
