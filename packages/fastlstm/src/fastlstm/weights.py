"""Keras's parameters of one direction in the order of the recurrence, and their gradients in Keras's order.

Keras puts a gate's columns of all cells together; the recurrence has a group's four gates side by side, and
zero-pads the last group.
"""

import numpy as np

from fastlstm.jit import inner
from fastlstm.matmul import pack_rows, round_up, words_in
from fastlstm.recurrence import GATES
from fastlstm.simd import LANES, TILE, as_words, load, load_some, pointer, store, store_some, write_transposed


@inner
def _interleave(values, units, out):
    """From one row of Keras's, `(4 * units)`, to one of the recurrence's, `(4 * cells)`."""
    for gate in range(GATES):
        for k in range(0, units, LANES):
            store(out, GATES * k + gate * LANES, load_some(values, gate * units + k, units - k))


@inner
def _deinterleave(values, gate_stride, units, out):
    """The inverse of `_interleave`; groups of LANES values are `gate_stride` apart."""
    for gate in range(GATES):
        for k in range(0, units, LANES):
            value = load(values, (GATES * k // LANES + gate) * gate_stride)
            store_some(out, gate * units + k, value, units - k)


@inner
def pack_parameters(kernel, recurrent, bias, packed, transposed, packed_bias):
    """Interleave the gates, round to the products' type, and pack for `forward` and `backward`.

    Args:
        kernel: float32 `(features, 4 * units)`.
        recurrent: float32 `(units, 4 * units)`.
        bias: float32 `(4 * units)`.
        packed: written, for `forward`: values that hold the right operand of `(cells + features, 4 * cells)`.
        transposed: written, for `backward`: of `(4 * cells, cells + features)`; not if it is empty.
        packed_bias: float32 `(4 * cells)`, written.
    """
    units, features = len(recurrent), len(kernel)
    cells = round_up(units, LANES)
    rows, columns = round_up(cells + features, TILE), GATES * cells
    array = np.zeros((rows, columns), packed.dtype)
    weights = pointer(array, (0, 0))
    for row in range(units):
        _interleave(pointer(recurrent, (row, 0)), units, pointer(weights, row * columns))
    for row in range(features):
        _interleave(pointer(kernel, (row, 0)), units, pointer(weights, (cells + row) * columns))
    _interleave(pointer(bias, (0,)), units, pointer(packed_bias, (0,)))
    words, depth = as_words(pointer(packed, (0,))), words_in(packed, rows)
    for column in range(0, columns, LANES):
        pack_rows(pointer(weights, column), rows, columns, pointer(words, column * depth), LANES)
    if len(transposed) > 0:
        source = as_words(weights)
        words, depth = as_words(pointer(transposed, (0,))), words_in(packed, columns)
        for row in range(0, cells + round_up(features, LANES), LANES):
            for k in range(0, depth, LANES):
                place = pointer(words, row * depth + k * LANES)
                write_transposed(pointer(source, row * depth + k), depth, place)
    array[0, 0] = 0  # pointers do not keep arrays alive


@inner
def unpack_gradients(d_weights, d_bias, kernel, recurrent, bias):
    """The gradients of one direction's parameters, in Keras's order.

    Args:
        d_weights: float32 `(4 * cells / LANES, cells + features or more, LANES)`.
        d_bias: float32 `(4 * cells)`.
        kernel, recurrent, bias: as in `pack_parameters`, written.
    """
    units, features, stride = len(recurrent), len(kernel), d_weights.shape[1] * LANES
    cells = len(d_bias) // GATES
    for row in range(units):
        _deinterleave(pointer(d_weights, (0, row, 0)), stride, units, pointer(recurrent, (row, 0)))
    for row in range(features):
        _deinterleave(pointer(d_weights, (0, cells + row, 0)), stride, units, pointer(kernel, (row, 0)))
    _deinterleave(pointer(d_bias, (0,)), LANES, units, pointer(bias, (0,)))
