"""Matrix products for the steps of an LSTM, written for the processor's vector registers.

A step's product is small: one operand is the layer's weights, the same in every step, the other a few
samples' states, which are in the nearest cache and whose product is used there at once. Libraries, made for
large operands, pack the weights anew in each call and write the product to memory. Here the weights are
packed once a batch, the way that Goto & van de Geijn (2008, "Anatomy of High-Performance Matrix
Multiplication") pack theirs, and the product stays where the step needs it.

An operand's *unit* is what one instruction multiplies with: a float32, or a pair of bfloat16 that lie one
after the other along the dimension which is summed over, as a uint32. Sums are float32.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from pipeline.compiled import compiled, host_has, inlined
from pipeline.vectors import FLOATS, INTS, LANES, BFloat16, everywhere, item, prefetch

# A tile of the product, in registers: so many rows, and so many vectors of so many float32. With one of each
# operand they fill AVX-512's 32 registers, or the 16 of AVX and the 32 of NEON, where a vector takes several.
ROWS, VECTORS = (12, 2) if host_has("avx512f") else (6, 1)
# Rows that are left over are taken so many at a time, and then singly.
FEW = 4
# Rows of weights that are asked for ahead while packing.
_AHEAD = 8


def multiplies_bfloat16():
    """Whether the processor multiplies bfloat16 in vectors (AVX-512), but not whole matrices of it (AMX).

    Where it does that, the libraries' products are several times faster than any in vectors.
    """
    return host_has("avx512bf16") and not host_has("amx-bf16")


_PAIRS = ir.VectorType(BFloat16(), 2 * LANES)
_BYTE, _INT, _LONG = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def _tile(typing_context, a, panel, start, out, rows, vectors):
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
            f"llvm.fma.v{LANES}f32", (), ir.FunctionType(FLOATS, [FLOATS, FLOATS, FLOATS]))
        of_pairs = in_pairs and host_has("avx512bf16") and builder.module.declare_intrinsic(
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
            left = everywhere(builder, read(a.data, builder.add(starts[i], unit_offset), unit))
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
    return types.void(a, panel, start, out, rows, vectors), generate


def _from(start, column):
    """What to add from a column on."""


@overload(_from, inline="always")
def _from_any(start, column):
    if isinstance(start, types.NoneType):
        return lambda start, column: None
    return lambda start, column: start[column:]


@inlined
def _multiply_rows(a, panels, start, out, rows):
    used, columns = a.shape[1], out.shape[1]
    depth = len(panels) // columns
    for column in range(0, columns, VECTORS * LANES):
        width = min(VECTORS * LANES, columns - column)
        panel, place = panels[column * depth + width * (depth - used):], out[:, column:]
        if width == LANES:
            _tile(a, panel, _from(start, column), place, rows, 1)
        else:
            _tile(a, panel, _from(start, column), place, rows, 2)


@compiled
def multiply(a, panels, start, out):
    """Write the product of a and packed weights to out.

    Args:
        a: units `(rows, depth)`; panels: of `pack_units`, whose depth may be larger: a is multiplied with
            the last.
        start: what to add to each row, float32 `(columns)`; None for what is in out.
        out: float32 `(rows, columns)`, each row contiguous, columns a multiple of `LANES`.
    """
    rows = len(a)
    full = rows - rows % ROWS
    few = rows - (rows - full) % FEW
    for r in range(0, full, ROWS):
        _multiply_rows(a[r:], panels, start, out[r:], ROWS)
    for r in range(full, few, FEW):
        _multiply_rows(a[r:], panels, start, out[r:], FEW)
    for r in range(few, rows):
        _multiply_rows(a[r:], panels, start, out[r:], 1)


@compiled
def padded(columns):
    """The next multiple of LANES: the columns of a product."""
    return (columns + LANES - 1) // LANES * LANES


def units_of(array):
    """A contiguous array of float32, or of bfloat16 as uint16, seen as units along its last dimension."""


@overload(units_of, inline="always")
def _units_of_any(array):
    if array.dtype == types.uint16:
        return lambda array: array.view(np.uint32)
    return lambda array: array


@compiled
def values_in_unit(array):
    return 2 if array.itemsize == 2 else 1


@compiled
def units_in(array, number):
    """How many units so many values of the array's type make, the last one filled up."""
    in_unit = values_in_unit(array)
    return (number + in_unit - 1) // in_unit


@intrinsic
def _write_units(typing_context, out, k, first, i, second, j):
    """LANES units to a row of them, made of values of two arrays; of float32, of the first's."""
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

        units = load(2)
        if in_pairs:
            high = builder.shl(builder.zext(load(4), INTS), ir.Constant(INTS, [16] * LANES))
            units = builder.or_(builder.zext(units, INTS), high)
        builder.store(units, address(0, units.type)).align = 4
        return context.get_dummy_value()
    return types.void(out, k, first, i, second, j), generate


def _unit(first, second):
    """As `_write_units`, of single values."""


@overload(_unit, inline="always")
def _unit_of_any(first, second):
    if first == types.uint16:
        return lambda first, second: np.uint32(first) | (np.uint32(second) << np.uint32(16))
    return lambda first, second: first


def _drop_second(units):
    """Clear the second value of each pair."""


@overload(_drop_second)
def _drop_second_of_any(units):
    if units.dtype == types.uint32:
        def drop(units):
            for k in range(len(units)):
                units[k] &= np.uint32(0xFFFF)
        return drop
    return lambda units: None


@compiled
def pack_units(a, k, depth, out):
    """Write rows in the order in which tiles read a right operand, some of the units that are summed over.

    Args:
        a: values `(rows, columns)`, columns a multiple of LANES.
        k: number of the first unit; depth: of them all.
        out: units, flat: panels of VECTORS vectors (the last of those that are left), unit by unit. A row
            that is missing to a unit is anything: on the left it must be 0.
    """
    rows, columns = a.shape
    in_unit = values_in_unit(a)
    for first in range(0, rows, in_unit):
        second = min(first + in_unit, rows) - 1
        for column in range(0, columns, VECTORS * LANES):
            width = min(VECTORS * LANES, columns - column)
            for v in range(column, column + width, LANES):
                place = column * depth + k * width + v - column
                _write_units(out, (place,), a, (first, v), a, (second, v))
        k += 1


@compiled
def pack(weights, panels):
    """`pack_units` of all of a right operand: weights `(depth, columns)`."""
    rows, columns = weights.shape
    in_unit = values_in_unit(weights)
    for first in range(0, rows, in_unit):
        for ahead in range(first + _AHEAD * in_unit, min(first + (_AHEAD + 1) * in_unit, rows)):
            prefetch(weights, (ahead, 0), columns)
        pack_units(weights[first:first + in_unit], first // in_unit, units_in(weights, rows), panels)


@compiled
def pack_transposed(weights, panels):
    """`pack` for the transpose of weights `(columns, depth)`, contiguous, depth a number of whole units."""
    units = units_of(weights)
    columns, depth = units.shape
    for column in range(0, columns, VECTORS * LANES):
        width = min(VECTORS * LANES, padded(columns) - column)
        own = min(width, columns - column)
        panel = panels[column * depth:(column + width) * depth].reshape((depth, width))
        for k in range(depth):
            for j in range(own):
                panel[k, j] = units[column + j, k]
            panel[k, own:] = 0


@compiled
def pack_units_beside(a, b, k, out):
    """Write rows [a | b] as units of a left operand, transposed.

    Args:
        a: values `(a's columns / LANES, rows, LANES)`; b: values `(rows, b's columns)`.
        k: number of the first unit; out: units `(depth, a's and b's columns)`. A row that is missing to a
            unit is 0.
    """
    rows, columns = b.shape
    split, in_unit = len(a) * LANES, values_in_unit(a)
    whole = columns - columns % LANES
    for first in range(0, rows, in_unit):
        second = min(first + in_unit, rows) - 1
        for g in range(len(a)):
            _write_units(out, (k, g * LANES), a, (g, first, 0), a, (g, second, 0))
        for j in range(0, whole, LANES):
            _write_units(out, (k, split + j), b, (first, j), b, (second, j))
        for j in range(whole, columns):
            out[k, split + j] = _unit(b[first, j], b[second, j])
        if first + in_unit > rows:
            _drop_second(out[k])
        k += 1
