"""The processor's arithmetic peak: the layer's instructions for products, operands in the nearest cache."""

import numba
import numpy as np
from fastlstm import tiles
from fastlstm.isa import ISA
from fastlstm.matmul import ROWS, VECTORS, Accumulators, Lhs
from fastlstm.simd import LANES, aligned, pointer
from fastlstm.vector_tiles import multiply_tile

# Words in a row of the vectors' operand.
DEPTH = 128


@numba.njit(nogil=True)
def _on_tiles(repeats, a, panel, start, out):
    before = tiles.configure_tiles()
    side = tiles.SIDE
    tiles.move_sums(Accumulators(pointer(start, (0,)), side, 2 * side * side), 0, 0, 2, 2, "tileloadd64")
    for _ in range(repeats):
        tiles.add_products(pointer(a, (0,)), pointer(panel, (0,)), side * side, 2, 2)
    tiles.move_sums(Accumulators(pointer(out, (0,)), side, 2 * side * side), 0, 0, 2, 2, "tilestored64")
    tiles.load_configuration(pointer(before, (0,)))


@numba.njit(nogil=True)
def _in_vectors(repeats, a, panel, start, out):
    lhs, stride = Lhs(pointer(a, (0,)), DEPTH, 1, 0), DEPTH * LANES
    first, product = (
        Accumulators(pointer(start, (0,)), LANES, ROWS * LANES),
        Accumulators(pointer(out, (0,)), LANES, ROWS * LANES),
    )
    for _ in range(repeats):
        multiply_tile(lhs, 0, DEPTH, pointer(panel, (0,)), stride, first, product, 0, ROWS, VECTORS)


def peak(flop: float, dtype: str):
    """A function that does at least that many floating-point operations in products of that type."""
    word = np.zeros(0, np.uint32 if dtype == "bfloat16" else np.float32)
    a, panel = aligned.py_func(32 * DEPTH, word), aligned.py_func(32 * DEPTH, word)
    start, out = (aligned.py_func(32 * 32, np.zeros(0, np.float32)) for _ in range(2))
    for array in (a, panel, start, out):
        array[:] = 0
    in_word = 2 if dtype == "bfloat16" else 1
    on_tiles = ISA == "amx" and dtype == "bfloat16"
    run = _on_tiles if on_tiles else _in_vectors
    a_repeat = 32 * 32 * 32 if on_tiles else ROWS * VECTORS * LANES * DEPTH * in_word
    repeats = int(flop / 2 / a_repeat) + 1
    return lambda: run(repeats, a, panel, start, out)
