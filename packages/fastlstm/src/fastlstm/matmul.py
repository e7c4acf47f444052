"""Matrix products for the steps of an LSTM: operand layouts, packing, and loops over tiles in registers.

A step's product is small. One operand is the layer's weights, the same in every step; the other is a few
samples' states, which are in the nearest cache, and the product is used there at once. Libraries are made for
large operands: they pack the weights anew in each call and write the product to memory. Here the weights are
packed once per batch, as in Goto & van de Geijn (2008, "Anatomy of High-Performance Matrix Multiplication").

A *word* is what one lane multiplies: a float32, or a pair of bfloat16 as a uint32, consecutive along the
dimension that is summed over (`depth`, in words). Sums are float32. With AMX, `tiles.py` multiplies bfloat16;
`vector_tiles.py` multiplies everything else.
"""

from typing import NamedTuple

from numba.core import types
from numba.extending import intrinsic, overload, register_jitable

from fastlstm import tiles, vector_tiles
from fastlstm.isa import uses
from fastlstm.jit import constant, inline, literal_inline
from fastlstm.simd import LANES, pointer

# A tile of the product in vector registers: rows, and vectors in a row. With one vector of each operand they
# fill AVX-512's 32 registers, or the 16 of AVX and the 32 of NEON, where a vector takes several.
ROWS, VECTORS = (12, 2) if uses("avx512") else (6, 1)
PANEL = VECTORS * LANES  # columns of a panel of the right operand
# Rows of two tiles of AMX, and of one.
_TWO_TILES, _ONE_TILE = 2 * tiles.SIDE, tiles.SIDE


class Lhs(NamedTuple):
    """A left operand.

    On AMX, tiles that are loaded together are stored together: of each 32 rows (zero-padded) the first 16
    words, row by row, then the next 16. See `lhs_stride` and `lhs_column`.

    Attributes:
        words: pointer to words `(rows, depth)`.
        row_stride, word_stride: nominal on AMX.
    """

    words: int
    row_stride: int
    word_stride: int


class PackedRhs(NamedTuple):
    """A right operand, packed.

    Attributes:
        words: pointer to the words of `packing.pack_rows`.
        skip: words of each column that are not multiplied, at the beginning.
        depth: words of each column.
    """

    words: int
    skip: int
    depth: int


class Accumulators(NamedTuple):
    """Pointer to a product, float32, by panels of PANEL columns, and its strides."""

    values: int
    row_stride: int
    panel_stride: int


def on_tiles_of(dtype):
    """Whether items of that type are multiplied on AMX's tiles."""
    return uses("amx") and dtype in (types.uint16, types.uint32)


@constant
def on_tiles(dtype):
    """Whether arrays of this type are multiplied on AMX's tiles."""
    return on_tiles_of(dtype)


@constant
def block_rows(dtype):
    """Samples that take their steps together: whole tiles of the product."""
    return _TWO_TILES if on_tiles_of(dtype) else 12


@constant
def block_part(dtype):
    """Samples between two parts of a product, see `multiply_part`."""
    return 4 if on_tiles_of(dtype) else 12


@constant
def tile_rows(dtype):
    """Left operands have room for a multiple of this many rows."""
    return _TWO_TILES if on_tiles_of(dtype) else 1


@constant
def tile_depth(dtype):
    """A multiple of this many words is multiplied; zero-padded."""
    return tiles.SIDE if on_tiles_of(dtype) else 1


@constant
def values_in_word(dtype):
    """2 for bfloat16, else 1."""
    return 2 if dtype == types.uint16 else 1


@register_jitable
def round_up(number, multiple):
    """The next multiple."""
    return (number + multiple - 1) // multiple * multiple


@register_jitable
def words_in(array, number):
    """Words of that many values of the array's type, with padding."""
    in_word = values_in_word(array)
    return round_up((number + in_word - 1) // in_word, tile_depth(array))


@inline
def lhs_stride(array, columns):
    """Distance between the rows of a block in a left operand of that many columns of values."""
    return _TWO_TILES if on_tiles(array) else columns


@inline
def lhs_column(array, column):
    """Offset of a column of values, a multiple of LANES, in a block's left operand."""
    return column // _TWO_TILES * _TWO_TILES**2 + column % _TWO_TILES if on_tiles(array) else column


@inline
def block_lhs(words, depth, skip):
    """The left operand of a block, without its first words; on AMX a multiple of 16."""
    return Lhs(pointer(words, skip * lhs_stride(words, 1)), depth, 1)


@inline
def panel_column(column, rows):
    """Offset of a column of `Accumulators` whose panels have that many rows."""
    return column // PANEL * PANEL * rows + column % PANEL


@intrinsic(prefer_literal=True)
def multiply_tile(
    typing_context, lhs, row_stride, word_stride, depth, panel, start, out, out_stride, rows, vectors
):
    """Write the product of some rows and a panel to out.

    Args:
        lhs, row_stride, word_stride: see `Lhs`.
        panel: pointer to words `(depth, vectors * LANES)`.
        start: pointer to float32 `(vectors * LANES)` to add to each row; None to add to `out`.
        out: pointer to float32 `(rows, vectors * LANES)`.
        out_stride: of its rows.
        rows, vectors: constants.
    """
    long = types.int64
    return (
        types.void(lhs, long, long, long, panel, start, out, long, rows, vectors),
        (tiles if on_tiles_of(lhs.dtype) else vector_tiles).generate_tile,
    )


@literal_inline
def _multiply_rows(lhs, row, depth, rhs, start, out, columns, rows):
    """`multiply` for some rows, a constant number, from a row on."""
    first, target = (pointer(lhs.words, row * lhs.row_stride), pointer(out.values, row * out.row_stride))
    for column in range(0, columns, PANEL):
        width = min(PANEL, columns - column)
        panel = pointer(rhs.words, column * rhs.depth + width * rhs.skip)
        bias = pointer(start, column)
        row_stride, word_stride, out_stride = (lhs.row_stride, lhs.word_stride, out.row_stride)
        if width == LANES:
            multiply_tile(first, row_stride, word_stride, depth, panel, bias, target, out_stride, rows, 1)
        else:
            multiply_tile(first, row_stride, word_stride, depth, panel, bias, target, out_stride, rows, 2)
        target = pointer(target, out.panel_stride)


def multiply(lhs, rows, depth, rhs, start, out, columns):
    """Write the product of two operands to out.

    Args:
        lhs: see `Lhs`.
        rows, depth: numbers to multiply, on AMX multiples of 16.
        rhs: see `PackedRhs`.
        start: pointer to float32 `(columns)` to add to each row; None to add to `out`.
        out: see `Accumulators`.
        columns: a multiple of LANES.
    """


@overload(multiply)
def _multiply(lhs, rows, depth, rhs, start, out, columns):
    # The last rows are taken fewer at a time, and then singly.
    many, few, rest = (_TWO_TILES, _ONE_TILE, _ONE_TILE) if on_tiles_of(lhs.types[0].dtype) else (ROWS, 4, 1)

    def implementation(lhs, rows, depth, rhs, start, out, columns):
        end_many = rows - rows % many
        end_few = rows - (rows - end_many) % few
        for row in range(0, end_many, many):
            _multiply_rows(lhs, row, depth, rhs, start, out, columns, many)
        for row in range(end_many, end_few, few):
            _multiply_rows(lhs, row, depth, rhs, start, out, columns, few)
        for row in range(end_few, rows, rest):
            _multiply_rows(lhs, row, depth, rhs, start, out, columns, rest)

    return implementation


def multiply_part(part, parts, lhs, rows, depth, rhs, start, out, columns):
    """One of some equal parts of `multiply`, all of which have to be called in turn.

    The matrix unit of AMX works beside the vector unit; what is done between the parts overlaps with them. In
    vectors there is nothing to gain, and the first part does everything.
    """


@overload(multiply_part)
def _multiply_part(part, parts, lhs, rows, depth, rhs, start, out, columns):
    if on_tiles_of(lhs.types[0].dtype):
        return _multiply_part_on_tiles

    def whole(part, parts, lhs, rows, depth, rhs, start, out, columns):
        if part == 0:
            multiply(lhs, rows, depth, rhs, start, out, columns)

    return whole


def _multiply_part_on_tiles(part, parts, lhs, rows, depth, rhs, start, out, columns):
    # All 32 rows, whatever `rows` is: the left operand and out have them.
    in_panel = depth // tiles.SIDE
    total = in_panel * ((columns + _TWO_TILES - 1) // _TWO_TILES)
    first, column = part * total // parts, 0
    remaining = (part + 1) * total // parts - first
    # Quicker than a division.
    while first >= in_panel:
        first, column = first - in_panel, column + _TWO_TILES
    while remaining > 0:
        last, width = (min(in_panel, first + remaining), min(_TWO_TILES, columns - column))
        panel = pointer(rhs.words, column * rhs.depth + rhs.skip * width)
        bias, target = (pointer(start, column), pointer(out.values, column // _TWO_TILES * out.panel_stride))
        if width == _ONE_TILE:
            _multiply_tiles(lhs.words, panel, first, last, in_panel, bias, target, out.row_stride, 1)
        else:
            _multiply_tiles(lhs.words, panel, first, last, in_panel, bias, target, out.row_stride, 2)
        remaining -= last - first
        first, column = 0, column + _TWO_TILES


@literal_inline
def _multiply_tiles(lhs, panel, first, last, in_panel, start, out, out_stride, across):
    """Some of the products for 32 rows and a panel; the sums stay in their registers meanwhile."""
    for number in range(first, last):
        if number == 0:
            tiles.start_sums(start, across)
        k = number * tiles.SIDE
        tiles.add_products(pointer(lhs, k * _TWO_TILES), pointer(panel, k * across * LANES), across)
        if number + 1 == in_panel:
            tiles.store_sums(out, out_stride, across)


def begin_products(array):
    """Prepare this thread for products of arrays of this type; returns what `end_products` needs."""


@overload(begin_products)
def _begin_products(array):
    if on_tiles_of(array.dtype):
        return lambda array: tiles.configure_tiles()
    return lambda array: None


def end_products(tile_state):
    """Leave the thread as it was before `begin_products`."""


@overload(end_products)
def _end_products(tile_state):
    if isinstance(tile_state, types.NoneType):
        return lambda tile_state: None
    return lambda tile_state: tiles.restore_tiles(tile_state)
