"""Every instruction set that this processor has, and the rules by which one is chosen."""

import os
import runpy
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fastlstm import BiLSTM, isa
from stock import run_python

TESTS = Path(__file__).with_name("test_numbers.py")
needs_amx = pytest.mark.skipif(isa.ISA != "amx", reason="the processor has no AMX, or it is not used")


@pytest.mark.forced_isa
@pytest.mark.parametrize("name", isa.available())
def test_outputs_and_gradients(name):
    """The main tests of numbers, once for each instruction set, in a process of its own."""
    if name == isa.ISA:
        pytest.skip("it is what all other tests use")
    # In float32 the sets above avx2 have the same code; generic
    # has that of avx2 without the fused product, so it is enough to test one of the two in each precision.
    precision = "not bfloat16" if name == "avx2" else "bfloat16"
    chosen = f"(lengths_and or any_size or stay_exactly or bear_any) and {precision}"
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS, "-k", chosen, FASTLSTM_ISA=name)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.forced_isa
@pytest.mark.skipif(isa.ISA != "avx512_bf16", reason="the processor has AMX, or no AVX512-BF16")
def test_the_code_for_amx_with_emulated_tiles(tmp_path):
    chosen = "(lengths_and or any_size or stay_exactly or bear_any) and bfloat16"
    done = run_python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "emulated_tiles", TESTS, "-k", chosen),
        NUMBA_CACHE_DIR=str(tmp_path),
        TF_NUM_INTEROP_THREADS="1",
        PYTHONPATH=os.pathsep.join([str(Path(isa.__file__).parents[1]), str(TESTS.parent)]),
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_instruction_set_that_is_not_there_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("FASTLSTM_ISA", "sse9")
    with pytest.raises(ValueError, match=r"FASTLSTM_ISA must be one of .*'sse9'"):
        runpy.run_path(isa.__file__)


@pytest.mark.skipif("amx" not in isa.available(), reason="the processor has no AMX")
def test_without_permission_for_tiles_the_next_best_is_used_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(isa, "request_tiles", lambda: False)
    assert "amx" not in isa.available()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "uses avx512_bf16 instead" in caplog.text


@pytest.mark.slow
@needs_amx
def test_permission_is_asked_for_in_every_process():
    done = run_python("-c", "from fastlstm.isa import ISA; print(ISA)")
    assert done.stdout.strip() == "amx"


@pytest.mark.slow
@needs_amx
def test_tiles_of_others_are_left_as_they_were():
    """TensorFlow's own products in bfloat16 use tiles too, in the same threads."""
    rng = np.random.default_rng(0)
    layer = BiLSTM(32, readout="mean", precision="bfloat16")
    x = tf.constant(rng.normal(size=(70, 6, 20)).astype("float32"))
    a, b = (tf.cast(rng.normal(size=(300, 300)), tf.bfloat16) for _ in range(2))

    @tf.function
    def both(x):
        product, outputs = a, []
        for _ in range(4):
            product = tf.matmul(product, b) / 300
            outputs.append(layer(x))
        return tf.cast(product, tf.float32), *outputs

    expected = [value.numpy() for value in both(x)]
    failures = []

    def run():
        for _ in range(20):
            if not all(np.array_equal(one, other) for one, other in zip(both(x), expected, strict=True)):
                failures.append("other numbers")

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
