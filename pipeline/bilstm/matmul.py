"""Matrix products for the steps of an LSTM: packing, and tiles in the processor's registers.

A step's product is small. One operand is the layer's weights, the same in every step; the other is a few
samples' states, which are in the nearest cache, and the product is used there at once. Libraries are made
for large operands: they pack the weights anew in each call and write the product to memory. Here the weights
are packed once a batch, as in Goto & van de Geijn (2008, "Anatomy of High-Performance Matrix
Multiplication"), and the product stays where the step needs it.

A *word* is what one lane multiplies: a float32, or a pair of bfloat16 as a uint32, which lie one after the
other along the dimension that is summed over. Sums are float32. With AMX, `tiles.py` multiplies bfloat16; all
else is multiplied in vectors.
"""

import platform

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from pipeline.bilstm import tiles
from pipeline.bilstm.isa import uses
from pipeline.bilstm.jit import compiled, inline
from pipeline.bilstm.simd import FLOATS, INTS, LANES, BFloat16, broadcast_ir, pointer

# A tile of the product in vector registers: rows, and vectors in a row. With one vector of each operand they
# fill AVX-512's 32 registers, or the 16 of AVX and the 32 of NEON, where a vector takes several.
ROWS, VECTORS = (12, 2) if uses("avx512") else (6, 1)
# Rows that are left over are taken so many at a time, and then singly.
FEW = 4
# Rows of two tiles of AMX, and of one for what is left over.
_TWO_TILES, _ONE_TILE = 2 * tiles.SIDE, tiles.SIDE
# Without the instruction, LLVM would call a function of the C library.
_FUSED = uses("avx2") or platform.machine() not in ("x86_64", "AMD64")


def on_tiles_of(dtype):
    """Whether values of that type are multiplied on AMX's tiles."""
    return uses("amx") and dtype in (types.uint16, types.uint32)


def on_tiles(array):
    """Whether arrays of this type are multiplied on AMX's tiles."""


@overload(on_tiles, inline="always")
def _on_tiles_any(array):
    result = on_tiles_of(array.dtype)
    return lambda array: result


def block_rows(array):
    """Samples that take their steps together: whole tiles of the product."""


@overload(block_rows, inline="always")
def _block_rows_any(array):
    rows = _TWO_TILES if on_tiles_of(array.dtype) else 12
    return lambda array: rows


@compiled
def whole_rows(array, rows):
    """The rows to multiply so that `rows` are: on AMX a multiple of 16. Both operands must have them."""
    return (rows + tiles.SIDE - 1) // tiles.SIDE * tiles.SIDE if on_tiles(array) else rows


_PAIRS = ir.VectorType(BFloat16(), 2 * LANES)
_BYTE, _INT, _LONG = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def multiply_tile(typing_context, a, a_row, a_word, depth, panel, start, out, out_row, rows, vectors):
    """Write the product of some rows and a panel to as many rows and vectors of out.

    Args:
        a: pointer to words `(rows, depth)`; a_row, a_word: from one row, and one word, to the next.
        panel: pointer to words `(depth, vectors * LANES)`.
        start: what to add to each row, pointer to float32 `(vectors * LANES)`; None for what is in out.
        out: pointer to float32 `(rows, vectors * LANES)`; out_row: from one row to the next.
        rows, vectors: constants.
    """

    def generate(context, builder, signature, arguments):
        a, a_row, a_word, depth, panel, start, out, out_row, _, _ = arguments
        heights, widths = range(signature.args[-2].literal_value), range(signature.args[-1].literal_value)
        from_out = isinstance(signature.args[5], types.NoneType)
        in_pairs = signature.args[0].dtype == types.uint32
        fused = builder.module.declare_intrinsic(
            f"llvm.{'fma' if _FUSED else 'fmuladd'}.v{LANES}f32",
            (),
            ir.FunctionType(FLOATS, [FLOATS, FLOATS, FLOATS]),
        )
        of_pairs = (
            in_pairs
            and uses("avx512_bf16")
            and builder.module.declare_intrinsic(
                "llvm.x86.avx512bf16.dpbf16ps.512", (), ir.FunctionType(FLOATS, [FLOATS, _PAIRS, _PAIRS])
            )
        )
        word = _INT if in_pairs else ir.FloatType()
        words = ir.VectorType(word, LANES)

        def at(base, offset, kind):
            address = builder.gep(builder.bitcast(base, _BYTE), [builder.mul(offset, _LONG(4))])
            return builder.bitcast(address, kind.as_pointer())

        def read(base, offset, kind):
            value = builder.load(at(base, offset, kind))
            value.align = 4
            return value

        def add_product(total, left, right):
            if of_pairs:
                return builder.call(of_pairs, [total, *(builder.bitcast(of, _PAIRS) for of in (left, right))])
            if in_pairs:
                for take, by in ((builder.shl, 16), (builder.and_, 0xFFFF0000)):
                    factors = [
                        builder.bitcast(take(of, ir.Constant(INTS, [by] * LANES)), FLOATS)
                        for of in (left, right)
                    ]
                    total = builder.call(fused, [*factors, total])
                return total
            return builder.call(fused, [left, right, total])

        places = [
            [at(out, builder.add(builder.mul(out_row, _LONG(i)), _LONG(LANES * j)), FLOATS) for j in widths]
            for i in heights
        ]
        row_starts = [builder.mul(a_row, _LONG(i)) for i in heights]
        if from_out:
            sums = [[read(place, _LONG(0), FLOATS) for place in row] for row in places]
        else:
            sums = [[read(start, _LONG(LANES * j), FLOATS) for j in widths]] * len(heights)

        before, loop = builder.block, builder.append_basic_block("sum")
        after = builder.append_basic_block("summed")
        builder.cbranch(builder.icmp_signed(">", depth, _LONG(0)), loop, after)
        builder.position_at_end(loop)
        k = builder.phi(_LONG)
        k.add_incoming(_LONG(0), before)
        running = [[builder.phi(FLOATS) for _ in widths] for _ in heights]
        panel_offset = builder.mul(k, _LONG(LANES * len(widths)))
        right = [read(panel, builder.add(panel_offset, _LONG(LANES * j)), words) for j in widths]
        word_offset = builder.mul(k, a_word)
        results = [[None for _ in widths] for _ in heights]
        for i in heights:
            left = broadcast_ir(builder, read(a, builder.add(row_starts[i], word_offset), word))
            for j in widths:
                results[i][j] = add_product(running[i][j], left, right[j])
        following = builder.add(k, _LONG(1))
        k.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        for i in heights:
            for j in widths:
                running[i][j].add_incoming(sums[i][j], before)
                running[i][j].add_incoming(results[i][j], loop)
                total = builder.phi(FLOATS)
                total.add_incoming(sums[i][j], before)
                total.add_incoming(results[i][j], loop)
                results[i][j] = total
        for i in heights:
            for j in widths:
                builder.store(results[i][j], places[i][j]).align = 4
        return context.get_dummy_value()

    long = types.int64
    return (
        types.void(a, long, long, long, panel, start, out, long, rows, vectors),
        tiles.generate_tile if on_tiles_of(a.dtype) else generate,
    )


def _from(start, column):
    """What to add from a column on."""


@overload(_from, inline="always")
def _from_any(start, column):
    if isinstance(start, types.NoneType):
        return lambda start, column: None
    return lambda start, column: pointer(start, column)


@inline
def _multiply_rows(a, a_row, a_word, words, panels, first, depth, start, out, out_row, columns, rows):
    for column in range(0, columns, VECTORS * LANES):
        width = min(VECTORS * LANES, columns - column)
        panel, place = pointer(panels, column * depth + width * first), pointer(out, column)
        if width == LANES:
            multiply_tile(a, a_row, a_word, words, panel, _from(start, column), place, out_row, rows, 1)
        else:
            multiply_tile(a, a_row, a_word, words, panel, _from(start, column), place, out_row, rows, 2)


def multiply(a, a_row, a_word, rows, words, panels, first, depth, start, out, out_row, columns):
    """Write the product of a and packed weights to out.

    Args:
        a: pointer to words `(rows, words)`. On AMX both numbers are multiples of 16, and a_word is 1.
        a_row, a_word: from one row, and one word, of a to the next.
        panels: pointer to words, of `pack_rows`.
        first: the word of the panels' that a's first is multiplied with; depth: words in all of the panels.
        start: what to add to each row, pointer to float32 `(columns)`; None for what is in out.
        out: pointer to float32 `(rows, columns)`, columns a multiple of `LANES`.
        out_row: from one row of out to the next.
    """


@overload(multiply)
def _multiply_any(a, a_row, a_word, rows, words, panels, first, depth, start, out, out_row, columns):
    return _multiply_on_tiles if on_tiles_of(a.dtype) else _multiply_in_vectors


def _multiply_in_vectors(a, a_row, a_word, rows, words, panels, first, depth, start, out, out_row, columns):
    full = rows - rows % ROWS
    few = rows - (rows - full) % FEW
    for r in range(0, full, ROWS):
        _multiply_rows(
            pointer(a, r * a_row),
            a_row,
            a_word,
            words,
            panels,
            first,
            depth,
            start,
            pointer(out, r * out_row),
            out_row,
            columns,
            ROWS,
        )
    for r in range(full, few, FEW):
        _multiply_rows(
            pointer(a, r * a_row),
            a_row,
            a_word,
            words,
            panels,
            first,
            depth,
            start,
            pointer(out, r * out_row),
            out_row,
            columns,
            FEW,
        )
    for r in range(few, rows):
        _multiply_rows(
            pointer(a, r * a_row),
            a_row,
            a_word,
            words,
            panels,
            first,
            depth,
            start,
            pointer(out, r * out_row),
            out_row,
            columns,
            1,
        )


def _multiply_on_tiles(a, a_row, a_word, rows, words, panels, first, depth, start, out, out_row, columns):
    full = rows - rows % _TWO_TILES
    for r in range(0, full, _TWO_TILES):
        _multiply_rows(
            pointer(a, r * a_row),
            a_row,
            a_word,
            words,
            panels,
            first,
            depth,
            start,
            pointer(out, r * out_row),
            out_row,
            columns,
            _TWO_TILES,
        )
    if full < rows:
        _multiply_rows(
            pointer(a, full * a_row),
            a_row,
            a_word,
            words,
            panels,
            first,
            depth,
            start,
            pointer(out, full * out_row),
            out_row,
            columns,
            _ONE_TILE,
        )


def multiply_part(part, parts, a, a_row, rows, words, panels, first, depth, start, out, columns):
    """One of some equal parts of `multiply`, all of which have to be called in turn.

    The matrix unit of AMX works beside the vector unit; what is done between the parts overlaps with them. In
    vectors there is nothing to gain, and the first part does everything.

    Args:
        columns: also from one row of out to the next; a multiple of 32. Others: as in `multiply`.
    """


@overload(multiply_part)
def _multiply_part_any(part, parts, a, a_row, rows, words, panels, first, depth, start, out, columns):
    if on_tiles_of(a.dtype):
        return _multiply_part_on_tiles

    def whole(part, parts, a, a_row, rows, words, panels, first, depth, start, out, columns):
        if part == 0:
            multiply(a, a_row, 1, rows, words, panels, first, depth, start, out, columns, columns)

    return whole


def _multiply_part_on_tiles(part, parts, a, a_row, rows, words, panels, first, depth, start, out, columns):
    # All 32 rows, even if fewer are asked for: a and out have them.
    width = VECTORS * LANES
    in_panel = words // tiles.SIDE
    in_all = in_panel * (columns // width)
    number, end = part * in_all // parts, (part + 1) * in_all // parts
    for column in range(0, columns, width):
        panel = pointer(panels, column * depth + first * width)
        while number < min(end, in_panel):
            if number == 0:
                tiles.start_sums(pointer(start, column))
            k = number * tiles.SIDE
            tiles.add_products(pointer(a, k), a_row, pointer(panel, k * width))
            number += 1
            if number == in_panel:
                tiles.store_sums(pointer(out, column), columns)
        number, end = max(number - in_panel, 0), end - in_panel


def block_part(array):
    """Samples between two parts of a product."""


@overload(block_part, inline="always")
def _block_part_any(array):
    rows = 4 if on_tiles_of(array.dtype) else 12
    return lambda array: rows


@compiled
def padded(columns):
    """The next multiple of LANES: the columns of a product."""
    return (columns + LANES - 1) // LANES * LANES


def as_words(array):
    """A contiguous array of float32, or of bfloat16 as uint16, seen as words along its last dimension."""


@overload(as_words, inline="always")
def _as_words_any(array):
    if array.dtype == types.uint16:
        return lambda array: array.view(np.uint32)
    return lambda array: array


def values_in_word(array):
    """2 for bfloat16, else 1, of an array or a pointer."""


@overload(values_in_word, inline="always")
def _values_in_word_any(array):
    number = 2 if array.dtype == types.uint16 else 1
    return lambda array: number


@compiled
def words_in(array, number):
    """How many words the values of the array's type take: the last one filled up, on AMX the last tile."""
    in_word = values_in_word(array)
    words = (number + in_word - 1) // in_word
    return whole_rows(array, words)


@compiled
def whole_words(array, number):
    """How many words, on AMX of whole tiles, the values fill."""
    words = number // values_in_word(array)
    return words // tiles.SIDE * tiles.SIDE if on_tiles(array) else words
