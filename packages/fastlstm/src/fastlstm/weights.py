"""Keras's parameters of one direction in the order of the recurrence, and their gradients back in Keras's.

Keras puts a gate's columns of all cells together; the recurrence has a group's four gates side by side, and
fills the last group up with cells whose weights are 0.
"""

import numpy as np

from fastlstm.jit import inline, inner
from fastlstm.matmul import as_words, round_up
from fastlstm.packing import pack, pack_transposed
from fastlstm.recurrence import GATES
from fastlstm.simd import LANES, read, read_some, write, write_some


@inline
def _interleave_row(values, row, units, out, out_row):
    for gate in range(GATES):
        for k in range(0, units, LANES):
            write(
                out,
                (out_row, GATES * k + gate * LANES),
                read_some(values, (row, gate * units + k), units - k),
            )


@inline
def _deinterleave_row(values, row, units, out, out_row):
    """Of values `(panels, rows, any width)`."""
    width = values.shape[2]
    for gate in range(GATES):
        for k in range(0, units, LANES):
            column = GATES * k + gate * LANES
            value = read(values, (column // width, row, column % width))
            write_some(out, (out_row, gate * units + k), value, units - k)


@inner
def pack_parameters(kernel, recurrent, bias, panels, transposed, packed_bias):
    """Interleave the gates, round to the products' type, and pack for `forward` and `backward`.

    Args:
        kernel: float32 `(features, 4 * units)`; recurrent: `(units, 4 * units)`; bias: `(4 * units)`.
        panels: written, for `forward`: values that hold the words of `(cells + features, 4 * cells)`.
        transposed: written, for `backward`: of `(4 * cells, cells + padded features)`; not if it is empty.
        packed_bias: float32 `(4 * cells)`, written.
    """
    units, features = len(recurrent), len(kernel)
    cells = round_up(units, LANES)
    weights = np.zeros((cells + features, GATES * cells), panels.dtype)
    for row in range(units):
        _interleave_row(recurrent, row, units, weights, row)
    for row in range(features):
        _interleave_row(kernel, row, units, weights, cells + row)
    _interleave_row(bias.reshape((1, len(bias))), 0, units, packed_bias.reshape((1, len(packed_bias))), 0)
    pack(weights, as_words(panels))
    if len(transposed) > 0:
        pack_transposed(weights, as_words(transposed))


@inner
def unpack_gradients(d_weights, d_bias, kernel, recurrent, bias):
    """The gradients of one direction's parameters, in Keras's order.

    Args:
        d_weights: float32 `(panels, cells + features or more, PANEL)`; d_bias: `(4 * cells)`.
        kernel, recurrent, bias: as in `pack_parameters`, written.
    """
    units, features = len(recurrent), len(kernel)
    cells = len(d_bias) // GATES
    for row in range(units):
        _deinterleave_row(d_weights, row, units, recurrent, row)
    for row in range(features):
        _deinterleave_row(d_weights, cells + row, units, kernel, row)
    _deinterleave_row(d_bias.reshape((1, 1, len(d_bias))), 0, units, bias.reshape((1, len(bias))), 0)
