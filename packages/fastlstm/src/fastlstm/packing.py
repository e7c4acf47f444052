"""Packing: operands in the order in which the tiles of `matmul.py` read them."""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from fastlstm.jit import inline, inner
from fastlstm.matmul import PANEL, on_tiles, on_tiles_of, values_in_word, words_in
from fastlstm.simd import INTS, LANES, item, pointer, vector_constant, write_transposed


@intrinsic
def _write_words(typing_context, out, index, values, first, second):
    """LANES words in a row: float32 from an index on, or pairs of the bfloat16 from two indices on."""

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        in_pairs = kinds[0].dtype == types.uint32
        vector = ir.VectorType(ir.IntType(16) if in_pairs else ir.FloatType(), LANES)

        def load(n):
            place = item(context, builder, (kinds[2], kinds[n]), (arguments[2], arguments[n]))
            value = builder.load(builder.bitcast(place, vector.as_pointer()))
            value.align = 2 if in_pairs else 4
            return value

        words = load(3)
        if in_pairs:
            high = builder.shl(builder.zext(load(4), INTS), vector_constant(ir.IntType(32), 16))
            words = builder.or_(builder.zext(words, INTS), high)
        target = item(context, builder, kinds, arguments)
        builder.store(words, builder.bitcast(target, words.type.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(out, index, values, first, second), generate


def _zero_seconds(words):
    """Clear the second value of each of LANES words of pairs."""


@overload(_zero_seconds)
def _zero_seconds_of(words):
    if words.dtype != types.uint32:
        return lambda words: None

    def implementation(words):
        for k in range(LANES):
            words[k] &= np.uint32(0xFFFF)

    return implementation


@inner
def pack_rows(values, rows, stride, width, out):
    """Write some columns of rows in the order in which tiles read a panel of a right operand.

    Args:
        values: pointer to values `(rows, width)`, a slice along the reduction axis.
        stride: of the rows.
        width: PANEL, or LANES.
        out: pointer to words `(rows in words, width)`. If the rows do not fill the last word, its second
            value is undefined: on the left it must be 0.
    """
    in_word = values_in_word(values)
    for column in range(0, width, LANES):
        for first in range(0, rows, in_word):
            second = min(first + in_word, rows) - 1
            index = first // in_word * width + column
            _write_words(out, index, values, first * stride + column, second * stride + column)


@inner
def pack(weights, rows, columns, panels):
    """Pack a right operand.

    Args:
        weights: pointer to values `(rows, columns)`, columns a multiple of LANES.
        panels: pointer to words, written: panels of PANEL columns, the last of those left. Words beyond
            the rows are 0.
    """
    depth, in_word = words_in(weights, rows), values_in_word(weights)
    for column in range(0, columns, PANEL):
        width = min(PANEL, columns - column)
        panel = pointer(panels, column * depth)
        pack_rows(pointer(weights, column), rows, columns, width, panel)
        for k in range((rows + in_word - 1) // in_word * width, depth * width):
            panel[k] = 0


@inner
def pack_transposed(weights, columns, depth, panels):
    """`pack` for the transpose of words `(columns, depth)`, depth a multiple of LANES."""
    whole = columns - columns % LANES
    padded = whole + LANES if whole < columns else whole
    for column in range(0, padded, PANEL):
        width = min(PANEL, padded - column)
        panel = pointer(panels, column * depth)
        for j in range(0, width, LANES):
            source = pointer(weights, (column + j) * depth)
            if column + j < whole:
                for k in range(0, depth, LANES):
                    write_transposed(pointer(source, k), depth, pointer(panel, k * width + j), width)
            else:
                for k in range(depth):
                    for i in range(LANES):
                        word = source[i * depth + k] if column + j + i < columns else 0
                        panel[k * width + j + i] = word


@inline
def stacked_lhs_strides(array, columns, depth):
    """`row_stride` and `word_stride` of a left operand `(columns, depth)` written by `pack_columns`."""
    row_stride = depth if on_tiles(array) else 1
    word_stride = 2 * LANES if on_tiles(array) else columns
    return row_stride, word_stride


def pack_columns(values, rows, lhs, column, row_stride, word_stride, spare):
    """Write LANES columns as rows of a left operand: to sum over their rows.

    Args:
        values: pointer to values `(rows, LANES)`.
        lhs: pointer to the left operand's word of the first row; zero-padded to whole words, or tiles.
        column: the first one's row in the left operand, a multiple of LANES.
        row_stride, word_stride: see `stacked_lhs_strides`.
        spare: pointer to words `(LANES, LANES)`, for AMX.
    """


@overload(pack_columns)
def _pack_columns(values, rows, lhs, column, row_stride, word_stride, spare):
    return _pack_columns_on_tiles if on_tiles_of(values.dtype) else _pack_columns_in_vectors


def _pack_columns_in_vectors(values, rows, lhs, column, row_stride, word_stride, spare):
    in_word = values_in_word(values)
    for first in range(0, rows, in_word):
        second = min(first + in_word, rows) - 1
        target = pointer(lhs, first // in_word * word_stride + column * row_stride)
        _write_words(target, 0, values, first * LANES, second * LANES)
        if first + in_word > rows:
            _zero_seconds(target)


def _pack_columns_on_tiles(values, rows, lhs, column, row_stride, word_stride, spare):
    pack_rows(values, rows, LANES, LANES, spare)
    if rows % 2:
        _zero_seconds(pointer(spare, rows // 2 * LANES))
    for k in range((rows + 1) // 2 * LANES, LANES * LANES):
        spare[k] = np.uint32(0)
    place = column // (2 * LANES) * 2 * LANES * row_stride + column % (2 * LANES) * LANES
    write_transposed(spare, LANES, pointer(lhs, place), LANES)
