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

from pipeline.compiled import compiled, host_has, inlined, prefetch

# A tile of the product, in registers: so many rows, and so many vectors of so many float32. With one of each
# operand they fill AVX-512's 32 registers, or the 16 of AVX and the 32 of NEON, where a vector takes several.
ROWS = 6
LANES = 16
VECTORS = 4 if host_has("avx512f") else 1
# Rows that are summed over at once in `multiply_transposed`: their packed copies stay in the second cache.
DEPTH = 512
# While packing, units are asked for so many before they are needed.
_AHEAD = 8


def multiplies_bfloat16():
    """Whether the processor multiplies bfloat16 in vectors (AVX-512), but not whole matrices of it (AMX).

    Where it does that, the libraries' products are several times faster than any in vectors.
    """
    return host_has("avx512bf16") and not host_has("amx-bf16")


class _BFloat16(ir.types.Type):
    """LLVM's type of that name, which llvmlite lacks."""

    def _to_string(self):
        return "bfloat"


_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_PAIRS = ir.VectorType(_BFloat16(), 2 * LANES)
_BYTE, _INT, _LONG = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def _tile(typing_context, a, panel, out, rows, vectors):
    """Add the product of a's first rows and a panel to as many rows and vectors of out.

    Args:
        a: units `(rows or more, depth)`; panel: units `(depth * vectors * LANES)`; out: float32 `(rows or
            more, vectors * LANES or more)`, each row contiguous.
        rows, vectors: constants.
    """
    def generate(context, builder, signature, arguments):
        heights, widths = range(signature.args[3].literal_value), range(signature.args[4].literal_value)
        a, panel, out = (context.make_array(kind)(context, builder, value)
                         for kind, value in zip(signature.args[:3], arguments))
        depth = cgutils.unpack_tuple(builder, a.shape, 2)[1]
        row_bytes, unit_bytes = cgutils.unpack_tuple(builder, a.strides, 2)
        out_bytes = cgutils.unpack_tuple(builder, out.strides, 2)[0]
        in_pairs = signature.args[0].dtype == types.uint32
        name, inputs = (("llvm.x86.avx512bf16.dpbf16ps.512", [_FLOATS, _PAIRS, _PAIRS]) if in_pairs
                        else (f"llvm.fma.v{LANES}f32", [_FLOATS, _FLOATS, _FLOATS]))
        function = builder.module.declare_intrinsic(name, (), ir.FunctionType(_FLOATS, inputs))
        unit = _INT if in_pairs else ir.FloatType()
        units = ir.VectorType(unit, LANES)

        def at(base, offset, kind):
            return builder.bitcast(builder.gep(builder.bitcast(base, _BYTE), [offset]), kind.as_pointer())

        def read(base, offset, kind):
            value = builder.load(at(base, offset, kind))
            value.align = 4
            return value

        def operand(value):
            return builder.bitcast(value, _PAIRS) if in_pairs else value

        def everywhere(value):
            nothing = ir.Constant(units, ir.Undefined)
            first = builder.insert_element(nothing, value, _INT(0))
            zeros = ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
            return builder.shuffle_vector(first, nothing, zeros)

        vector_bytes = 4 * LANES
        row_starts = [builder.mul(out_bytes, _LONG(i)) for i in heights]
        places = [[at(out.data, builder.add(row_starts[i], _LONG(vector_bytes * j)), _FLOATS) for j in widths]
                  for i in heights]
        starts = [builder.mul(row_bytes, _LONG(i)) for i in heights]
        sums = [[read(place, _LONG(0), _FLOATS) for place in row] for row in places]

        before, loop = builder.block, builder.append_basic_block("sum")
        after = builder.append_basic_block("summed")
        builder.cbranch(builder.icmp_signed(">", depth, _LONG(0)), loop, after)
        builder.position_at_end(loop)
        k = builder.phi(_LONG)
        k.add_incoming(_LONG(0), before)
        running = [[builder.phi(_FLOATS) for _ in widths] for _ in heights]
        panel_offset = builder.mul(k, _LONG(vector_bytes * len(widths)))
        right = [operand(read(panel.data, builder.add(panel_offset, _LONG(vector_bytes * j)), units))
                 for j in widths]
        unit_offset = builder.mul(k, unit_bytes)
        results = [[None for _ in widths] for _ in heights]
        for i in heights:
            left = operand(everywhere(read(a.data, builder.add(starts[i], unit_offset), unit)))
            for j in widths:
                factors = (running[i][j], left, right[j]) if in_pairs else (left, right[j], running[i][j])
                results[i][j] = builder.call(function, factors)
        following = builder.add(k, _LONG(1))
        k.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        for i in heights:
            for j in widths:
                running[i][j].add_incoming(sums[i][j], before)
                running[i][j].add_incoming(results[i][j], loop)
                total = builder.phi(_FLOATS)
                total.add_incoming(sums[i][j], before)
                total.add_incoming(results[i][j], loop)
                results[i][j] = total
        for i in heights:
            for j in widths:
                builder.store(results[i][j], places[i][j]).align = 4
        return context.get_dummy_value()
    return types.void(a, panel, out, rows, vectors), generate


@inlined
def _tile_of_width(a, panel, out, rows, vectors):
    if vectors == 1:
        _tile(a, panel, out, rows, 1)
    elif vectors == 2:
        _tile(a, panel, out, rows, 2)
    elif vectors == 3:
        _tile(a, panel, out, rows, 3)
    else:
        _tile(a, panel, out, rows, 4)


@compiled
def multiply(a, panels, out):
    """Add the product of a and packed weights to out.

    Args:
        a: units `(rows, depth)`; panels: of `pack`; out: float32 `(rows, columns)`, each row contiguous,
            columns a multiple of `LANES`.
    """
    rows, depth = a.shape
    vectors = out.shape[1] // LANES
    for v in range(0, vectors, VECTORS):
        panel, columns = panels[v * LANES * depth:], out[:, v * LANES:]
        width = min(VECTORS, vectors - v)
        full = rows - rows % ROWS
        for r in range(0, full, ROWS):
            _tile_of_width(a[r:], panel, columns[r:], ROWS, width)
        for r in range(full, rows):
            _tile_of_width(a[r:], panel, columns[r:], 1, width)


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
def units_in(array, number):
    """How many units so many values of the array's type make: half as many pairs, an odd one filled up."""
    return (number + 1) // 2 if array.itemsize == 2 else number


def _interleave(rows, k, start, out):
    """Units number k of some rows `(depth, columns)`, from column `start` on, to out."""


@overload(_interleave, inline="always")
def _interleave_any(rows, k, start, out):
    if rows.dtype == types.uint16:
        def interleave(rows, k, start, out):
            first = rows[2 * k, start:start + len(out)]
            if 2 * k + 1 < len(rows):
                second = rows[2 * k + 1, start:start + len(out)]
                for j in range(len(out)):
                    out[j] = np.uint32(first[j]) | (np.uint32(second[j]) << np.uint32(16))
            else:
                for j in range(len(out)):
                    out[j] = np.uint32(first[j])
    else:
        def interleave(rows, k, start, out):
            row = rows[k, start:start + len(out)]
            for j in range(len(out)):
                out[j] = row[j]
    return interleave


@compiled
def pack(weights, panels):
    """Write the right operand of a product in the order in which tiles read it.

    Args:
        weights: values `(depth, columns)`, each row contiguous.
        panels: units, flat: panels of VECTORS vectors (the last of those that are left), unit by unit;
            columns that are missing to a multiple of LANES are 0.
    """
    columns = weights.shape[1]
    depth, vectors = units_in(weights, len(weights)), padded(columns) // LANES
    per_unit = 2 if weights.itemsize == 2 else 1
    for k in range(depth):
        for row in range((k + _AHEAD) * per_unit, min((k + _AHEAD + 1) * per_unit, len(weights))):
            prefetch(weights[row])
        for v in range(0, vectors, VECTORS):
            width = min(VECTORS, vectors - v) * LANES
            start = v * LANES * depth + k * width
            own = min(width, columns - v * LANES)
            _interleave(weights, k, v * LANES, panels[start:start + own])
            panels[start + own:start + width] = 0


@compiled
def pack_transposed(weights, panels):
    """`pack` for the transpose of weights `(columns, depth)`, contiguous, depth a number of whole units."""
    units = units_of(weights)
    columns, depth = units.shape
    vectors = padded(columns) // LANES
    for v in range(0, vectors, VECTORS):
        width = min(VECTORS, vectors - v) * LANES
        panel = panels[v * LANES * depth:v * LANES * depth + width * depth].reshape((depth, width))
        own = min(width, columns - v * LANES)
        for k in range(depth):
            for j in range(own):
                panel[k, j] = units[v * LANES + j, k]
            panel[k, own:] = 0


@compiled
def multiply_transposed(a, b, c, out):
    """The transposed [a | b] times c: weights' gradients from their inputs and from their outputs' gradients.

    Args:
        a: values `(samples, steps, a's rows)`; b: values `(samples, steps, b's rows)`; c: values `(samples,
            steps, columns)`, contiguous. The sum is over samples and steps.
        out: float32 `(a's and b's rows, padded(columns))`.
    """
    samples, steps, split = a.shape
    rows, columns = split + b.shape[2], c.shape[2]
    at_once = max(1, DEPTH // steps)
    left_rows = np.empty((at_once * steps, rows), a.dtype)
    depth = units_in(a, len(left_rows))
    left = np.empty((depth, rows), units_of(np.empty(2, a.dtype)).dtype)
    panels = np.empty(depth * padded(columns), left.dtype)
    out[:] = 0
    for start in range(0, samples, at_once):
        number = min(at_once, samples - start)
        for n in range(number):
            left_rows[n * steps:(n + 1) * steps, :split] = a[start + n]
            left_rows[n * steps:(n + 1) * steps, split:] = b[start + n]
        summed = number * steps
        depth = units_in(a, summed)
        for k in range(depth):
            _interleave(left_rows[:summed], k, 0, left[k])
        pack(c[start:start + number].reshape((summed, columns)), panels)
        multiply(left[:depth].T, panels, out)
