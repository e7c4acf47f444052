"""Matrix products for the steps of an LSTM: packing, and tiles in the processor's registers.

A step's product is small. One operand is the layer's weights, the same in every step; the other is a few
samples' states, which are in the nearest cache, and the product is used there at once. Libraries are made
for large operands: they pack the weights anew in each call and write the product to memory. Here the weights
are packed once a batch, as in Goto & van de Geijn (2008, "Anatomy of High-Performance Matrix
Multiplication"), and the product stays where the step needs it.

A *word* is what one lane multiplies: a float32, or a pair of bfloat16 as a uint32, which lie one after the
other along the dimension that is summed over. Sums are float32. With AMX, `tiles.py` multiplies bfloat16,
`vector_tiles.py` all else.
"""

from typing import NamedTuple

import numpy as np
from numba.core import types
from numba.extending import intrinsic, overload, register_jitable

from fastlstm import tiles, vector_tiles
from fastlstm.isa import uses
from fastlstm.jit import constant, inline, literal_inline
from fastlstm.simd import LANES, pointer

# A tile of the product in vector registers: rows, and vectors in a row. With one vector of each operand they
# fill AVX-512's 32 registers, or the 16 of AVX and the 32 of NEON, where a vector takes several.
ROWS, VECTORS = (12, 2) if uses("avx512") else (6, 1)
PANEL = VECTORS * LANES  # columns
# Rows that are left over are taken four at a time, and then singly.
FEW = 4
# Rows of two tiles of AMX, and of one for what is left over.
_TWO_TILES, _ONE_TILE = 2 * tiles.SIDE, tiles.SIDE


def begin_products(array):
    """Prepare this thread for products of arrays of this type; returns what `end_products` needs."""


@overload(begin_products)
def _begin_products_of(array):
    if on_tiles_of(array.dtype):
        return lambda array: tiles.configure_tiles()
    return lambda array: None


def end_products(tile_state):
    """Leave the thread as it was before `begin_products`."""


@overload(end_products)
def _end_products_of(tile_state):
    if isinstance(tile_state, types.NoneType):
        return lambda tile_state: None
    return lambda tile_state: tiles.restore_tiles(tile_state)


class Left(NamedTuple):
    """A left operand.

    On AMX, tiles that are loaded together lie together: of each 32 rows (the last ones filled up) the first
    16 words, row by row, then the next 16. See `left_row` and `left_column`.

    Attributes:
        words: pointer to words `(rows, depth)`.
        row, word: from one row, and from one word, to the next; on AMX on average.
    """

    words: int
    row: int
    word: int


class Panels(NamedTuple):
    """A right operand, packed.

    Attributes:
        words: pointer to the words of `packing.pack_rows`.
        first: the word that the left operand's first is multiplied with.
        depth: words in all.
    """

    words: int
    first: int
    depth: int


class Sums(NamedTuple):
    """Where a product is written, float32, by panels of PANEL columns.

    Attributes:
        values: pointer to the first row of the first panel.
        row, panel: from one row, and from one panel, to the next.
    """

    values: int
    row: int
    panel: int


def on_tiles_of(dtype):
    """Whether values of that type are multiplied on AMX's tiles."""
    return uses("amx") and dtype in (types.uint16, types.uint32)


@constant
def on_tiles(dtype):
    """Whether arrays of this type are multiplied on AMX's tiles."""
    return on_tiles_of(dtype)


@constant
def block_rows(dtype):
    """Samples that take their steps together: whole tiles of the product."""
    return _TWO_TILES if on_tiles_of(dtype) else 12


@register_jitable
def whole_block(array, rows):
    """Rows that a left operand has room for: on AMX a multiple of 32."""
    return round_up(rows, _TWO_TILES) if on_tiles(array) else rows


@register_jitable
def whole_rows(array, rows):
    """The rows to multiply so that `rows` are: on AMX a multiple of 16. Both operands must have them."""
    return round_up(rows, tiles.SIDE) if on_tiles(array) else rows


def left_row(array, columns):
    """Distance between the rows of a block in a left operand of that many columns, of the array's type."""


@overload(left_row, inline="always")
def _left_row_any(array, columns):
    if on_tiles_of(array.dtype):
        return lambda array, columns: _TWO_TILES
    return lambda array, columns: columns


def left_column(array, column):
    """Where a column, a multiple of LANES, of a block's first row is in a left operand."""


@overload(left_column, inline="always")
def _left_column_any(array, column):
    if on_tiles_of(array.dtype):
        return lambda array, column: column // _TWO_TILES * _TWO_TILES**2 + column % _TWO_TILES
    return lambda array, column: column


@inline
def block_left(words, depth, first):
    """The left operand of a block, of that many words a row, from one on, on AMX from a multiple of 16."""
    return Left(pointer(words, first * left_row(words, 1)), depth, 1)


@inline
def in_panels(column, rows):
    """Where a column of `Sums` that lie panel by panel, of that many rows, begins."""
    return column // PANEL * PANEL * rows + column % PANEL


@intrinsic(prefer_literal=True)
def multiply_tile(typing_context, a, a_row, a_word, depth, panel, start, out, out_row, rows, vectors):
    """Write the product of some rows and a panel to out.

    Args:
        a, a_row, a_word: see `Left`.
        panel: pointer to words `(depth, vectors * LANES)`.
        start: what to add to each row, pointer to float32 `(vectors * LANES)`; None for what is in out.
        out: pointer to float32 `(rows, vectors * LANES)`; out_row: from one row to the next.
        rows, vectors: constants.
    """
    long = types.int64
    return (
        types.void(a, long, long, long, panel, start, out, long, rows, vectors),
        (tiles if on_tiles_of(a.dtype) else vector_tiles).generate_tile,
    )


def _from(start, column):
    """What to add from a column on."""


@overload(_from, inline="always")
def _from_any(start, column):
    if isinstance(start, types.NoneType):
        return lambda start, column: None
    return lambda start, column: pointer(start, column)


@literal_inline
def _multiply_rows(left, row, words, panels, start, out, columns, rows):
    """`multiply` for some rows, a constant number, from a row on."""
    a, to = pointer(left.words, row * left.row), pointer(out.values, row * out.row)
    for column in range(0, columns, PANEL):
        width = min(PANEL, columns - column)
        panel = pointer(panels.words, column * panels.depth + width * panels.first)
        add = _from(start, column)
        if width == LANES:
            multiply_tile(a, left.row, left.word, words, panel, add, to, out.row, rows, 1)
        else:
            multiply_tile(a, left.row, left.word, words, panel, add, to, out.row, rows, 2)
        to = pointer(to, out.panel)


def multiply(left, rows, words, panels, start, out, columns):
    """Write the product of a left operand and packed weights to out.

    Args:
        left: see `Left`; rows, words: how many to multiply, on AMX multiples of 16.
        panels: see `Panels`.
        start: what to add to each row, pointer to float32 `(columns)`; None for what is in out.
        out: see `Sums`; columns: a multiple of `LANES`.
    """


@overload(multiply)
def _multiply_any(left, rows, words, panels, start, out, columns):
    if on_tiles_of(left.types[0].dtype):

        def on_tiles(left, rows, words, panels, start, out, columns):
            full = rows - rows % _TWO_TILES
            for row in range(0, full, _TWO_TILES):
                _multiply_rows(left, row, words, panels, start, out, columns, _TWO_TILES)
            if full < rows:
                _multiply_rows(left, full, words, panels, start, out, columns, _ONE_TILE)

        return on_tiles

    def in_vectors(left, rows, words, panels, start, out, columns):
        full = rows - rows % ROWS
        few = rows - (rows - full) % FEW
        for row in range(0, full, ROWS):
            _multiply_rows(left, row, words, panels, start, out, columns, ROWS)
        for row in range(full, few, FEW):
            _multiply_rows(left, row, words, panels, start, out, columns, FEW)
        for row in range(few, rows):
            _multiply_rows(left, row, words, panels, start, out, columns, 1)

    return in_vectors


def multiply_part(part, parts, left, rows, words, panels, start, out, columns):
    """One of some equal parts of `multiply`, all of which have to be called in turn.

    The matrix unit of AMX works beside the vector unit; what is done between the parts overlaps with them. In
    vectors there is nothing to gain, and the first part does everything.

    Args:
        As in `multiply`.
    """


@overload(multiply_part)
def _multiply_part_any(part, parts, left, rows, words, panels, start, out, columns):
    if on_tiles_of(left.types[0].dtype):
        return _multiply_part_on_tiles

    def whole(part, parts, left, rows, words, panels, start, out, columns):
        if part == 0:
            multiply(left, rows, words, panels, start, out, columns)

    return whole


def _multiply_part_on_tiles(part, parts, left, rows, words, panels, start, out, columns):
    # All 32 rows, whatever `rows` is: the left operand and out have them.
    in_panel = words // tiles.SIDE
    in_all = in_panel * ((columns + _TWO_TILES - 1) // _TWO_TILES)
    first, column = part * in_all // parts, 0
    more = (part + 1) * in_all // parts - first
    # Quicker than a division.
    while first >= in_panel:
        first, column = first - in_panel, column + _TWO_TILES
    while more > 0:
        last, width = min(in_panel, first + more), min(_TWO_TILES, columns - column)
        panel = pointer(panels.words, column * panels.depth + panels.first * width)
        add, to = pointer(start, column), pointer(out.values, column // _TWO_TILES * out.panel)
        if width == _ONE_TILE:
            _multiply_tiles(left.words, panel, first, last, in_panel, add, to, out.row, 1)
        else:
            _multiply_tiles(left.words, panel, first, last, in_panel, add, to, out.row, 2)
        more -= last - first
        first, column = 0, column + _TWO_TILES


@literal_inline
def _multiply_tiles(left, panel, first, last, in_panel, start, out, out_row, across):
    """Some of the products for 32 rows and a panel; the sums stay in their registers meanwhile."""
    for number in range(first, last):
        if number == 0:
            tiles.start_sums(start, across)
        k = number * tiles.SIDE
        tiles.add_products(pointer(left, k * _TWO_TILES), pointer(panel, k * across * LANES), across)
        if number + 1 == in_panel:
            tiles.store_sums(out, out_row, across)


@constant
def block_part(dtype):
    """Samples between two parts of a product."""
    return 4 if on_tiles_of(dtype) else 12


@register_jitable
def round_up(number, multiple):
    """The next multiple."""
    return (number + multiple - 1) // multiple * multiple


def as_words(array):
    """A contiguous array of float32, or of bfloat16 as uint16, seen as words along its last dimension."""


@overload(as_words, inline="always")
def _as_words_any(array):
    if array.dtype == types.uint16:
        return lambda array: array.view(np.uint32)
    return lambda array: array


@constant
def values_in_word(dtype):
    """2 for bfloat16, else 1, of an array or a pointer."""
    return 2 if dtype == types.uint16 else 1


@register_jitable
def words_in(array, number):
    """How many words the values of the array's type take: the last one filled up, on AMX the last tile."""
    in_word = values_in_word(array)
    words = (number + in_word - 1) // in_word
    return whole_rows(array, words)


@register_jitable
def whole_words(array, number):
    """How many words, on AMX of whole tiles, the values fill."""
    words = number // values_in_word(array)
    return words // tiles.SIDE * tiles.SIDE if on_tiles(array) else words
