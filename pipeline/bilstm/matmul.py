"""Matrix products for the steps of an LSTM: packing, and tiles in the processor's registers.

A step's product is small. One operand is the layer's weights, the same in every step; the other is a few
samples' states, which are in the nearest cache, and the product is used there at once. Libraries are made
for large operands: they pack the weights anew in each call and write the product to memory. Here the weights
are packed once a batch, as in Goto & van de Geijn (2008, "Anatomy of High-Performance Matrix
Multiplication"), and the product stays where the step needs it.

A *word* is what one lane multiplies: a float32, or a pair of bfloat16 as a uint32, which lie one after the
other along the dimension that is summed over. Sums are float32. With AMX, bfloat16 is multiplied by `tiles.py`
and everything else in vectors.
"""

import platform

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from pipeline.bilstm import tiles
from pipeline.bilstm.isa import uses
from pipeline.bilstm.jit import compiled, inline
from pipeline.bilstm.simd import FLOATS, INTS, LANES, BFloat16, broadcast_ir, item, pointer, prefetch, write_transposed

# A tile of the product in vector registers: rows, and vectors in a row. With one vector of each operand they
# fill AVX-512's 32 registers, or the 16 of AVX and the 32 of NEON, where a vector takes several.
ROWS, VECTORS = (12, 2) if uses("avx512") else (6, 1)
# Rows that are left over are taken so many at a time, and then singly.
FEW = 4
# Rows of weights that are prefetched while packing.
_AHEAD = 8
# Rows of two tiles of AMX, and of one for what is left over.
_TWO_TILES, _ONE_TILE = 2 * tiles.SIDE, tiles.SIDE
# Without the instruction, LLVM would call a function of the C library.
_FUSED = uses("avx2") or platform.machine() not in ("x86_64", "AMD64")


def _on_tiles(dtype):
    return uses("amx") and dtype in (types.uint16, types.uint32)


def on_tiles(array):
    """Whether arrays of this type are multiplied on AMX's tiles."""


@overload(on_tiles, inline="always")
def _on_tiles_any(array):
    result = _on_tiles(array.dtype)
    return lambda array: result


def block_rows(array):
    """Samples that take their steps together: whole tiles of the product."""


@overload(block_rows, inline="always")
def _block_rows_any(array):
    rows = _TWO_TILES if _on_tiles(array.dtype) else 12
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
            f"llvm.{'fma' if _FUSED else 'fmuladd'}.v{LANES}f32", (),
            ir.FunctionType(FLOATS, [FLOATS, FLOATS, FLOATS]))
        of_pairs = in_pairs and uses("avx512_bf16") and builder.module.declare_intrinsic(
            "llvm.x86.avx512bf16.dpbf16ps.512", (), ir.FunctionType(FLOATS, [FLOATS, _PAIRS, _PAIRS]))
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
                    factors = [builder.bitcast(take(of, ir.Constant(INTS, [by] * LANES)), FLOATS)
                               for of in (left, right)]
                    total = builder.call(fused, [*factors, total])
                return total
            return builder.call(fused, [left, right, total])

        places = [[at(out, builder.add(builder.mul(out_row, _LONG(i)), _LONG(LANES * j)), FLOATS) for j in widths]
                  for i in heights]
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
    return (types.void(a, long, long, long, panel, start, out, long, rows, vectors),
            tiles.generate_tile if _on_tiles(a.dtype) else generate)


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
    return _multiply_on_tiles if _on_tiles(a.dtype) else _multiply_in_vectors


def _multiply_in_vectors(a, a_row, a_word, rows, words, panels, first, depth, start, out, out_row, columns):
    full = rows - rows % ROWS
    few = rows - (rows - full) % FEW
    for r in range(0, full, ROWS):
        _multiply_rows(pointer(a, r * a_row), a_row, a_word, words, panels, first, depth, start,
                       pointer(out, r * out_row), out_row, columns, ROWS)
    for r in range(full, few, FEW):
        _multiply_rows(pointer(a, r * a_row), a_row, a_word, words, panels, first, depth, start,
                       pointer(out, r * out_row), out_row, columns, FEW)
    for r in range(few, rows):
        _multiply_rows(pointer(a, r * a_row), a_row, a_word, words, panels, first, depth, start,
                       pointer(out, r * out_row), out_row, columns, 1)


def _multiply_on_tiles(a, a_row, a_word, rows, words, panels, first, depth, start, out, out_row, columns):
    full = rows - rows % _TWO_TILES
    for r in range(0, full, _TWO_TILES):
        _multiply_rows(pointer(a, r * a_row), a_row, a_word, words, panels, first, depth, start,
                       pointer(out, r * out_row), out_row, columns, _TWO_TILES)
    if full < rows:
        _multiply_rows(pointer(a, full * a_row), a_row, a_word, words, panels, first, depth, start,
                       pointer(out, full * out_row), out_row, columns, _ONE_TILE)


def multiply_part(part, parts, a, a_row, rows, words, panels, first, depth, start, out, columns):
    """One of some equal parts of `multiply`, all of which have to be called in turn.

    The matrix unit of AMX works beside the vector unit; what is done between the parts overlaps with them. In
    vectors there is nothing to gain, and the first part does everything.

    Args:
        columns: also from one row of out to the next; a multiple of 32. Others: as in `multiply`.
    """


@overload(multiply_part)
def _multiply_part_any(part, parts, a, a_row, rows, words, panels, first, depth, start, out, columns):
    if _on_tiles(a.dtype):
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
    rows = 4 if _on_tiles(array.dtype) else 12
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


def _drop_seconds(words, number):
    """Clear the second value of each of the words, which a pointer leads to."""


@overload(_drop_seconds)
def _drop_seconds_any(words, number):
    if words.dtype == types.uint32:
        def drop(words, number):
            for k in range(number):
                words[k] &= np.uint32(0xFFFF)
        return drop
    return lambda words, number: None


@compiled
def pack_rows(a, k, depth, out):
    """Write rows in the order in which tiles read a right operand.

    Args:
        a: values `(rows, columns)`, columns a multiple of LANES: some of those that are summed over.
        k: number of their first word; depth: words in all.
        out: words, flat: panels of VECTORS vectors (the last of those that are left), word by word. If the
            rows do not fill the last word, its second value is anything: on the left it must be 0.
    """
    rows, columns = a.shape
    in_word = values_in_word(a)
    for column in range(0, columns, VECTORS * LANES):
        width = min(VECTORS * LANES, columns - column)
        place = pointer(out, (column * depth + k * width,))
        for v in range(0, width, LANES):
            for first in range(0, rows, in_word):
                second = min(first + in_word, rows) - 1
                _write_words(place, first // in_word * width + v, a, (first, column + v), a, (second, column + v))


@compiled
def pack(weights, panels):
    """`pack_rows` of a whole right operand: weights `(depth, columns)`; words beyond the depth are 0."""
    rows, columns = weights.shape
    in_word, depth = values_in_word(weights), words_in(weights, rows)
    for first in range(0, rows, in_word):
        for ahead in range(first + _AHEAD * in_word, min(first + (_AHEAD + 1) * in_word, rows)):
            prefetch(weights, (ahead, 0), columns)
        pack_rows(weights[first:first + in_word], first // in_word, depth, panels)
    whole = (rows + in_word - 1) // in_word
    for column in range(0, columns, VECTORS * LANES):
        width = min(VECTORS * LANES, columns - column)
        panels[column * depth + whole * width:(column + width) * depth] = 0


@compiled
def pack_transposed(weights, panels):
    """`pack` for the transpose of weights `(columns, depth)`, depth a multiple of LANES words."""
    words = as_words(weights)
    columns, depth = words.shape
    for column in range(0, columns, VECTORS * LANES):
        width = min(VECTORS * LANES, padded(columns) - column)
        panel = panels[column * depth:(column + width) * depth].reshape((depth, width))
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
    """Words from one row, and one word of a row, to the next in a left operand `(columns, depth)`."""


@overload(left_strides)
def _left_strides_any(like, columns, depth):
    if _on_tiles(like.dtype):
        return lambda like, columns, depth: (depth, 1)
    return lambda like, columns, depth: (1, columns)


def pack_columns(a, groups, rows, left, row, word):
    """Write columns of a as rows of a left operand: to sum over a's rows.

    Args:
        a: pointer to values `(groups, rows, LANES)`: row by row for each group of columns.
        left: pointer to the first row's first word. What a's rows lack to whole words, on AMX to a whole tile,
            is 0.
        row, word: of `left_strides`.
    """


@overload(pack_columns)
def _pack_columns_any(a, groups, rows, left, row, word):
    return _pack_columns_on_tiles if _on_tiles(a.dtype) else _pack_columns_in_vectors


def _pack_columns_in_vectors(a, groups, rows, left, row, word):
    in_word = values_in_word(a)
    for first in range(0, rows, in_word):
        second = min(first + in_word, rows) - 1
        place = pointer(left, first // in_word * word)
        for g in range(groups):
            _write_words(place, g * LANES, a, (g * rows + first) * LANES, a, (g * rows + second) * LANES)
        if first + in_word > rows:
            _drop_seconds(place, groups * LANES)


def _pack_columns_on_tiles(a, groups, rows, left, row, word):
    scratch = np.zeros((LANES, LANES), np.uint32)
    words = pointer(scratch, (0, 0))
    for g in range(groups):
        for first in range(0, rows, 2):
            second = min(first + 1, rows - 1)
            _write_words(words, first // 2 * LANES, a, (g * rows + first) * LANES, a, (g * rows + second) * LANES)
        if rows % 2:
            _drop_seconds(pointer(words, rows // 2 * LANES), LANES)
        write_transposed(words, LANES, pointer(left, g * LANES * row), row)
    # Numba frees an array after its last use.
    scratch[0] = 0
