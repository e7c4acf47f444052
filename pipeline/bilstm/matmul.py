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
from pipeline.bilstm.simd import FLOATS, INTS, LANES, BFloat16, broadcast_ir, item, prefetch, write_transposed

# A tile of the product in vector registers: rows, and vectors in a row. With one vector of each operand they
# fill AVX-512's 32 registers, or the 16 of AVX and the 32 of NEON, where a vector takes several.
ROWS, VECTORS = (12, 2) if uses("avx512") else (6, 1)
# Rows that are left over are taken so many at a time, and then singly.
FEW = 4
# Rows of weights that are prefetched while packing.
_AHEAD = 8
# Rows of two tiles of AMX, and of one for what is left over.
_TWO_TILES, _ONE_TILE = 2 * tiles.SIDE, tiles.SIDE
# Words that are summed over before the next tile of the product on AMX, where the sum goes on: 16 KB of each
# operand, so that both stay in the nearest cache.
_CHUNK = 128
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
def multiply_tile(typing_context, a, panel, start, out, rows, vectors):
    """Write the product of a's first rows and a panel to as many rows and vectors of out.

    Args:
        a: units `(rows or more, depth)`; panel: units `(depth * vectors * LANES)`; out: float32 `(rows or
            more, vectors * LANES or more)`, each row contiguous.
        start: what to add to each row, float32 `(vectors * LANES or more)`; None for what is in out.
        rows, vectors: constants.
    """
    def generate(context, builder, signature, arguments):
        heights, widths = range(signature.args[4].literal_value), range(signature.args[5].literal_value)
        from_out = isinstance(signature.args[2], types.NoneType)
        a, panel, start, out = (None if isinstance(kind, types.NoneType)
                                else context.make_array(kind)(context, builder, value)
                                for kind, value in zip(signature.args[:4], arguments))
        depth = cgutils.unpack_tuple(builder, a.shape, 2)[1]
        row_bytes, unit_bytes = cgutils.unpack_tuple(builder, a.strides, 2)
        out_bytes = cgutils.unpack_tuple(builder, out.strides, 2)[0]
        in_pairs = signature.args[0].dtype == types.uint32
        fused = builder.module.declare_intrinsic(
            f"llvm.{'fma' if _FUSED else 'fmuladd'}.v{LANES}f32", (),
            ir.FunctionType(FLOATS, [FLOATS, FLOATS, FLOATS]))
        of_pairs = in_pairs and uses("avx512_bf16") and builder.module.declare_intrinsic(
            "llvm.x86.avx512bf16.dpbf16ps.512", (), ir.FunctionType(FLOATS, [FLOATS, _PAIRS, _PAIRS]))
        unit = _INT if in_pairs else ir.FloatType()
        units = ir.VectorType(unit, LANES)

        def at(base, offset, kind):
            return builder.bitcast(builder.gep(builder.bitcast(base, _BYTE), [offset]), kind.as_pointer())

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

        vector_bytes = 4 * LANES
        row_starts = [builder.mul(out_bytes, _LONG(i)) for i in heights]
        places = [[at(out.data, builder.add(row_starts[i], _LONG(vector_bytes * j)), FLOATS) for j in widths]
                  for i in heights]
        starts = [builder.mul(row_bytes, _LONG(i)) for i in heights]
        if from_out:
            sums = [[read(place, _LONG(0), FLOATS) for place in row] for row in places]
        else:
            sums = [[read(start.data, _LONG(vector_bytes * j), FLOATS) for j in widths]] * len(heights)

        before, loop = builder.block, builder.append_basic_block("sum")
        after = builder.append_basic_block("summed")
        builder.cbranch(builder.icmp_signed(">", depth, _LONG(0)), loop, after)
        builder.position_at_end(loop)
        k = builder.phi(_LONG)
        k.add_incoming(_LONG(0), before)
        running = [[builder.phi(FLOATS) for _ in widths] for _ in heights]
        panel_offset = builder.mul(k, _LONG(vector_bytes * len(widths)))
        right = [read(panel.data, builder.add(panel_offset, _LONG(vector_bytes * j)), units) for j in widths]
        unit_offset = builder.mul(k, unit_bytes)
        results = [[None for _ in widths] for _ in heights]
        for i in heights:
            left = broadcast_ir(builder, read(a.data, builder.add(starts[i], unit_offset), unit))
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
    return (types.void(a, panel, start, out, rows, vectors),
            tiles.generate_tile if _on_tiles(a.dtype) else generate)


def _from(start, column):
    """What to add from a column on."""


@overload(_from, inline="always")
def _from_any(start, column):
    if isinstance(start, types.NoneType):
        return lambda start, column: None
    return lambda start, column: start[column:]


@inline
def _multiply_rows(a, panels, first, depth, start, out, rows):
    used, columns = a.shape[1], out.shape[1]
    for column in range(0, columns, VECTORS * LANES):
        width = min(VECTORS * LANES, columns - column)
        panel, place = panels[column * depth + width * first:], out[:, column:]
        if width == LANES:
            multiply_tile(a, panel, _from(start, column), place, rows, 1)
        else:
            multiply_tile(a, panel, _from(start, column), place, rows, 2)


def multiply(a, panels, start, out):
    """Write the product of a and packed weights to out.

    Args:
        a: words `(rows, depth)`. On AMX, rows and depth are multiples of 16.
        panels: of `pack_rows`, whose depth may be larger: a is multiplied with the last words.
        start: what to add to each row, float32 `(columns)`; None for what is in out.
        out: float32 `(rows, columns)`, each row contiguous, columns a multiple of `LANES`.
    """


@overload(multiply)
def _multiply_any(a, panels, start, out):
    return _multiply_on_tiles if _on_tiles(a.dtype) else _multiply_in_vectors


def _multiply_in_vectors(a, panels, start, out):
    rows, depth = len(a), len(panels) // out.shape[1]
    first = depth - a.shape[1]
    full = rows - rows % ROWS
    few = rows - (rows - full) % FEW
    for r in range(0, full, ROWS):
        _multiply_rows(a[r:], panels, first, depth, start, out[r:], ROWS)
    for r in range(full, few, FEW):
        _multiply_rows(a[r:], panels, first, depth, start, out[r:], FEW)
    for r in range(few, rows):
        _multiply_rows(a[r:], panels, first, depth, start, out[r:], 1)


def _multiply_on_tiles(a, panels, start, out):
    rows, used, depth = len(a), a.shape[1], len(panels) // out.shape[1]
    full = rows - rows % (_TWO_TILES)
    chunk = _CHUNK if start is None else used
    for k in range(0, used, chunk):
        part = a[:, k:min(k + chunk, used)]
        first = depth - used + k
        for r in range(0, full, _TWO_TILES):
            _multiply_rows(part[r:], panels, first, depth, start, out[r:], _TWO_TILES)
        if full < rows:
            _multiply_rows(part[full:], panels, first, depth, start, out[full:], _ONE_TILE)


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


@compiled
def values_in_word(array):
    return 2 if array.itemsize == 2 else 1


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


def _drop_second(words):
    """Clear the second value of each pair."""


@overload(_drop_second)
def _drop_second_any(words):
    if words.dtype == types.uint32:
        def drop(words):
            for k in range(len(words)):
                words[k] &= np.uint32(0xFFFF)
        return drop
    return lambda words: None


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
    for first in range(0, rows, in_word):
        second = min(first + in_word, rows) - 1
        for column in range(0, columns, VECTORS * LANES):
            width = min(VECTORS * LANES, columns - column)
            for v in range(column, column + width, LANES):
                _write_words(out, (column * depth + k * width + v - column,), a, (first, v), a, (second, v))
        k += 1


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
                write_transposed(words, (column + j, k), panel, (k, j))
        for j in range(whole, width):
            if column + j < columns:
                panel[:, j] = words[column + j]
            else:
                panel[:, j] = 0


def left_operand(like, columns, depth):
    """An empty left operand `(columns, depth)` of words for `pack_columns`; on AMX each row is contiguous."""


@overload(left_operand)
def _left_operand_any(like, columns, depth):
    if _on_tiles(like.dtype):
        return lambda like, columns, depth: as_words(np.empty((columns, 2 * depth), like.dtype))

    def transposed(like, columns, depth):
        return as_words(np.empty((depth, columns * values_in_word(like)), like.dtype)).T
    return transposed


def pack_columns(a, column, k, left):
    """Write the columns of a to rows of a left operand: to sum over a's rows.

    Args:
        a: values `(groups, rows, LANES)`: row by row for each group of columns.
        column: the first column's number in `left`; k: the number of the first word.
        left: of `left_operand`. Values that a's rows lack to whole words, on AMX to whole tiles, are 0.
    """


@overload(pack_columns)
def _pack_columns_any(a, column, k, left):
    if _on_tiles(a.dtype):
        return _pack_columns_for_tiles

    def pack_columns(a, column, k, left):
        groups, rows, _ = a.shape
        in_word = values_in_word(a)
        for first in range(0, rows, in_word):
            second = min(first + in_word, rows) - 1
            for g in range(groups):
                _write_words(left.T, (k, column + g * LANES), a, (g, first, 0), a, (g, second, 0))
            if first + in_word > rows:
                _drop_second(left[column:column + groups * LANES, k])
            k += 1
    return pack_columns


def _pack_columns_for_tiles(a, column, k, left):
    groups, rows, _ = a.shape
    words = np.zeros((tiles.SIDE, LANES), np.uint32)
    for g in range(groups):
        for first in range(0, rows, 2):
            second = min(first + 1, rows - 1)
            _write_words(words, (first // 2, 0), a, (g, first, 0), a, (g, second, 0))
            if second == first:
                _drop_second(words[first // 2])
        write_transposed(words, (0, 0), left, (column + g * LANES, k))
