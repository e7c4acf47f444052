"""Matrix products for the steps of an LSTM: operand layouts, packing, and loops over tiles in registers.

A step's product is small. One operand is the layer's weights, the same in every step; the other is a few
samples' states, which are in the nearest cache, and the product is used there at once. Libraries are made for
large operands: they pack the weights anew in each call and write the product to memory. Here the weights are
packed once per batch, as in Goto & van de Geijn (2008, "Anatomy of High-Performance Matrix Multiplication").

A *word* is what one lane multiplies: a float32, or a pair of bfloat16 as a uint32, consecutive along the
dimension that is summed over (`depth`, in words). Accumulators are float32. Layouts are the same for every
instruction set, but for operands that are summed over samples:

| array | layout |
|---|---|
| states of a block of samples | values `(columns / TILE, block_rows, TILE)`, see `state_column` |
| right operand | words `(columns / LANES, depth, LANES)`, depth a multiple of LANES |
| product, cell states | float32 `(columns / LANES, rows, LANES)` |
"""

from typing import NamedTuple

from numba.core import types
from numba.extending import register_jitable

from fastlstm import tiles
from fastlstm.isa import uses
from fastlstm.jit import constant, inline, inner, literal_inline
from fastlstm.simd import LANES, SAMPLES, TILE, as_words, pointer, store_words, write_transposed
from fastlstm.vector_tiles import multiply_tile

# A tile of the product in vector registers: rows, and vectors in a row. With one vector of each operand they
# fill AVX-512's 32 registers, or the 16 of AVX and the 32 of NEON, where a vector takes several.
ROWS, VECTORS = (12, 2) if uses("avx512") else (6, 1)
_BLOCK = 12  # a multiple of ROWS
_TWO_TILES = 2 * tiles.SIDE


class Lhs(NamedTuple):
    """A left operand: pointer to words, and strides of rows, of words, and of whole tiles beyond those.

    On AMX the strides are nominal: `multiply` uses only the row stride, `stack` those of rows and words.
    """

    words: int
    row_stride: int
    word_stride: int
    tile_stride: int


class Accumulators(NamedTuple):
    """Pointer to float32, and the strides of rows and of groups of LANES columns."""

    values: int
    row_stride: int
    group_stride: int


def _on_tiles(dtype):
    return uses("amx") and dtype in (types.uint16, types.uint32)


on_tiles = constant(_on_tiles)  # Whether arrays of this type are multiplied on AMX's tiles.


@constant
def block_rows(dtype):
    """Samples that take their steps together: whole tiles of the product."""
    return _TWO_TILES if _on_tiles(dtype) else _BLOCK


@constant
def block_part(dtype):
    """Samples per part of a product, see `multiply`."""
    return SAMPLES if _on_tiles(dtype) else _BLOCK


@constant
def values_in_word(dtype):
    """2 for bfloat16, else 1."""
    return 2 if dtype == types.uint16 else 1


@register_jitable
def round_up(number, multiple):
    """`number` rounded up to a multiple."""
    return (number + multiple - 1) // multiple * multiple


@inline
def words_in(array, number):
    """Words of that many values of the array's type."""
    return (number + values_in_word(array) - 1) // values_in_word(array)


@inline
def state_column(array, column):
    """Offset of a column, a multiple of LANES, in the states of a block; rows have a stride of TILE."""
    return column // TILE * TILE * block_rows(array) + column % TILE


@inline
def state_lhs(values, skip):
    """The states of a block as a left operand, without the first `skip` columns, a multiple of TILE."""
    in_word, rows = values_in_word(values), block_rows(values)
    words = as_words(pointer(values, skip * rows))
    return Lhs(words, TILE // in_word, 1, TILE // in_word * (rows - 1))


@inline
def multiply(part, parts, lhs, rows, depth, rhs, rhs_stride, start, out, columns):
    """Compute part `part` of `parts` of a product into out; call all parts in order.

    The matrix unit of AMX works beside the vector unit; what is done between the parts overlaps with them. In
    vectors there is nothing to gain, and the first part does everything.

    Args:
        lhs: see `Lhs`.
        rows: a multiple of SAMPLES, or 1.
        depth: number of words to sum over; 0 only if start is out.
        rhs, rhs_stride: pointer to the right operand, and words between its groups of LANES columns.
        start: `Accumulators` to add the products to; its strides may be 0.
        out: `Accumulators`, written.
        columns: a multiple of LANES.
    """
    if on_tiles(rhs):
        _multiply_on_tiles(part, parts, lhs, rows, depth, rhs, rhs_stride, start, out, columns)
    elif part == 0:
        _multiply_in_vectors(lhs, rows, depth, rhs, rhs_stride, start, out, columns)


@inner
def _multiply_in_vectors(lhs, rows, depth, rhs, rhs_stride, start, out, columns):
    groups, whole = columns // LANES, rows - rows % _BLOCK
    for row in range(0, whole, ROWS):
        _multiply_rows(lhs, row, depth, rhs, rhs_stride, start, out, groups, ROWS)
    if rows == 1:
        _multiply_rows(lhs, 0, depth, rhs, rhs_stride, start, out, groups, 1)
    else:
        for row in range(whole, rows, SAMPLES):
            _multiply_rows(lhs, row, depth, rhs, rhs_stride, start, out, groups, SAMPLES)


@literal_inline
def _multiply_rows(lhs, row, depth, rhs, rhs_stride, start, out, groups, rows):
    whole = groups - groups % VECTORS
    for group in range(0, whole, VECTORS):
        panel = pointer(rhs, group * rhs_stride)
        multiply_tile(lhs, row, depth, panel, rhs_stride, start, out, group, rows, VECTORS)
    for group in range(whole, groups):
        panel = pointer(rhs, group * rhs_stride)
        multiply_tile(lhs, row, depth, panel, rhs_stride, start, out, group, rows, 1)


@inner
def _multiply_on_tiles(part, parts, lhs, rows, depth, rhs, rhs_stride, start, out, columns):
    in_depth = (depth + tiles.SIDE - 1) // tiles.SIDE
    groups = columns // LANES
    total = in_depth * ((groups + 1) // 2)
    for row in range(0, rows, _TWO_TILES):
        left, tall = pointer(lhs.words, row * lhs.row_stride), rows - row > tiles.SIDE
        first, group = part * total // parts, 0
        remaining = (part + 1) * total // parts - first
        # Quicker than a division.
        while first > 0 and first >= in_depth:
            first, group = first - in_depth, group + 2
        while remaining > 0:
            last, panel = min(in_depth, first + remaining), pointer(rhs, group * rhs_stride)
            wide = group + 1 < groups
            for number in range(first, last):
                a = pointer(left, number * tiles.SIDE * _TWO_TILES)
                b = pointer(panel, number * tiles.SIDE * LANES)
                begins, ends = number == 0, number + 1 == in_depth
                if tall and wide:
                    _multiply_tiles(a, b, rhs_stride, start, out, row, group, begins, ends, 2, 2)
                elif tall:
                    _multiply_tiles(a, b, rhs_stride, start, out, row, group, begins, ends, 2, 1)
                elif wide:
                    _multiply_tiles(a, b, rhs_stride, start, out, row, group, begins, ends, 1, 2)
                else:
                    _multiply_tiles(a, b, rhs_stride, start, out, row, group, begins, ends, 1, 1)
            remaining -= last - first
            first, group = 0, group + 2


@literal_inline
def _multiply_tiles(a, b, b_stride, start, out, row, group, begins, ends, down, across):
    """Add the products of a tile's depth; the sums stay in their registers meanwhile."""
    if begins:
        tiles.move_sums(start, row, group, down, across, "tileloadd64")
    tiles.add_products(a, b, b_stride, down, across)
    if ends:
        tiles.move_sums(out, row, group, down, across, "tilestored64")


@inline
def pack_rows(values, rows, stride, out, out_stride):
    """Write LANES columns of rows as words, consecutive rows in pairs for bfloat16.

    Args:
        values: pointer to the values of the first row.
        rows, stride: number of rows, even for bfloat16, and their stride.
        out, out_stride: pointer to the words of the first row of words, and their stride.
    """
    in_word = values_in_word(values)
    for row in range(0, rows, in_word):
        store_words(out, row // in_word * out_stride, values, row * stride, (row + in_word - 1) * stride)


@inline
def stacked_lhs(array, words, rows, depth):
    """A left operand written by `stack`: rows are columns of states, the depth are samples of all steps."""
    return Lhs(words, depth, _TWO_TILES, 0) if on_tiles(array) else Lhs(words, 1, rows, 0)


@inner
def stack(values, rows, lhs, row, word, spare):
    """Write LANES columns of a step's states as rows of a left operand: to sum over samples.

    Args:
        values: pointer to values `(rows, LANES)`.
        lhs: see `stacked_lhs`.
        row, word: place in the left operand; a multiple of LANES, and the step's first word.
        spare: pointer to words `(LANES, LANES)`, for AMX.
    """
    if on_tiles(values):
        pack_rows(values, rows, LANES, spare, LANES)
        for k in range(rows // 2 * LANES, LANES * LANES):
            spare[k] = 0
        column = row % _TWO_TILES
        place = (row - column) * lhs.row_stride + column * LANES + word * lhs.word_stride
        write_transposed(spare, LANES, pointer(lhs.words, place))
    else:
        pack_rows(values, rows, LANES, pointer(lhs.words, word * lhs.word_stride + row), lhs.word_stride)
