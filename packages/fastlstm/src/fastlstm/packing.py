"""Packing: operands in the order in which the tiles of `matmul.py` read them."""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from fastlstm.jit import inner
from fastlstm.matmul import PANEL, as_words, on_tiles_of, round_up, values_in_word, words_in
from fastlstm.simd import INTS, LANES, item, pointer, write_transposed


@intrinsic
def _write_words(typing_context, out, place, first, i, second, j):
    """LANES words in a row, made of values of two arrays; of float32, of the first's."""

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        in_pairs = kinds[0].dtype == types.uint32
        values = ir.VectorType(ir.IntType(16) if in_pairs else ir.FloatType(), LANES)

        def address(n, of):
            return builder.bitcast(item(context, builder, kinds[n:], arguments[n:]), of.as_pointer())

        def load(n):
            value = builder.load(address(n, values))
            value.align = 2 if in_pairs else 4
            return value

        words = load(2)
        if in_pairs:
            high = builder.shl(builder.zext(load(4), INTS), ir.Constant(INTS, [16] * LANES))
            words = builder.or_(builder.zext(words, INTS), high)
        builder.store(words, address(0, words.type)).align = 4
        return context.get_dummy_value()

    return types.void(out, place, first, i, second, j), generate


def _drop_seconds(words):
    """Clear the second value of each of LANES words, which a pointer leads to."""


@overload(_drop_seconds)
def _drop_seconds_any(words):
    if words.dtype == types.uint32:

        def drop(words):
            for k in range(LANES):
                words[k] &= np.uint32(0xFFFF)

        return drop
    return lambda words: None


@inner
def pack_rows(a, rows, row, width, out):
    """Write some columns of rows in the order in which tiles read a panel of a right operand.

    Args:
        a: pointer to values `(rows, width)`: some of what is summed over; row: from one row to the next.
        width: PANEL, or LANES.
        out: pointer to words `(rows in words, width)`. If the rows do not fill the last word, its second
            value is anything: on the left it must be 0.
    """
    in_word = values_in_word(a)
    for v in range(0, width, LANES):
        for first in range(0, rows, in_word):
            second = min(first + in_word, rows) - 1
            _write_words(out, first // in_word * width + v, a, first * row + v, a, second * row + v)


@inner
def pack(weights, panels):
    """Pack a right operand.

    Args:
        weights: values `(depth, columns)`, columns a multiple of LANES.
        panels: words, flat, written: panels of PANEL columns, the last of what is left. Words beyond
            the depth are 0.
    """
    rows, columns = weights.shape
    depth, whole = words_in(weights, rows), -(-rows // values_in_word(weights))
    for column in range(0, columns, PANEL):
        width = min(PANEL, columns - column)
        panel = panels[column * depth : (column + width) * depth]
        pack_rows(pointer(weights, (0, column)), rows, columns, width, pointer(panel, (0,)))
        panel[whole * width :] = 0


@inner
def pack_transposed(weights, panels):
    """`pack` for the transpose of weights `(columns, depth)`, depth a multiple of LANES words."""
    words = as_words(weights)
    columns, depth = words.shape
    for column in range(0, columns, PANEL):
        width = min(PANEL, round_up(columns, LANES) - column)
        panel = panels[column * depth : (column + width) * depth].reshape((depth, width))
        whole = min(width, columns - column) // LANES * LANES
        for k in range(0, depth, LANES):
            for j in range(0, whole, LANES):
                write_transposed(pointer(words, (column + j, k)), depth, pointer(panel, (k, j)), width)
        for j in range(whole, width):
            if column + j < columns:
                panel[:, j] = words[column + j]
            else:
                panel[:, j] = 0


def left_strides(like, columns, depth):
    """`row` and `word` of a `Left` operand `(columns, depth)`."""


@overload(left_strides)
def _left_strides_any(like, columns, depth):
    if on_tiles_of(like.dtype):
        return lambda like, columns, depth: (depth, 2 * LANES)
    return lambda like, columns, depth: (1, columns)


def pack_columns(a, rows, left, column, row, word, spare):
    """Write LANES columns of a as rows of a left operand: to sum over a's rows.

    Args:
        a: pointer to values `(rows, LANES)`.
        left: pointer to the left operand, to the word of a's first row. What a's rows lack to whole words, on
            AMX to whole tiles, is 0.
        column: the first one's row in the left operand, a multiple of LANES.
        row, word: of `left_strides`.
        spare: pointer to words `(LANES, LANES)` for AMX.
    """


@overload(pack_columns)
def _pack_columns_any(a, rows, left, column, row, word, spare):
    return _pack_columns_on_tiles if on_tiles_of(a.dtype) else _pack_columns_in_vectors


def _pack_columns_in_vectors(a, rows, left, column, row, word, spare):
    in_word = values_in_word(a)
    for first in range(0, rows, in_word):
        second = min(first + in_word, rows) - 1
        place = pointer(left, first // in_word * word + column * row)
        _write_words(place, 0, a, first * LANES, a, second * LANES)
        if first + in_word > rows:
            _drop_seconds(place)


def _pack_columns_on_tiles(a, rows, left, column, row, word, spare):
    pack_rows(a, rows, LANES, LANES, spare)
    if rows % 2:
        _drop_seconds(pointer(spare, rows // 2 * LANES))
    for k in range((rows + 1) // 2 * LANES, LANES * LANES):
        spare[k] = np.uint32(0)
    place = pointer(left, column // (2 * LANES) * 2 * LANES * row + column % (2 * LANES) * LANES)
    write_transposed(spare, LANES, place, LANES)
