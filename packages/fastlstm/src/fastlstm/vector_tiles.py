"""Matrix products in vector registers, for `matmul.py`: of float32, and of bfloat16 without AMX."""

import platform
from collections.abc import Callable

from llvmlite import ir

from fastlstm.isa import uses
from fastlstm.simd import LANES, BFloat16, instruction, load_ir, splat_ir, store_ir, vector_constant

_INT, _LONG = ir.IntType(32), ir.IntType(64)
_FLOATS, _PAIRS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(BFloat16(), 2 * LANES)
# Without the instruction, LLVM would call a function of the C library.
_FUSED = "fma" if uses("avx2") or platform.machine() not in ("x86_64", "AMD64") else "fmuladd"


def _adder(builder, in_pairs) -> Callable:
    """A function of sums and two operands, vectors of words, that returns the sums with the products."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS, _FLOATS, _FLOATS])
    fused = builder.module.declare_intrinsic(f"llvm.{_FUSED}.v{LANES}f32", (), kind)
    if not in_pairs:
        return lambda total, left, right: builder.call(fused, [left, right, total])
    if uses("avx512_bf16"):
        kind = ir.FunctionType(_FLOATS, [_FLOATS, _PAIRS, _PAIRS])
        of_pairs = builder.module.declare_intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", (), kind)
        return lambda total, *words: builder.call(
            of_pairs, [total, *(builder.bitcast(of, _PAIRS) for of in words)]
        )

    def add_converted(total, *words):
        for take, by in ((builder.shl, 16), (builder.and_, 0xFFFF0000)):
            factors = (builder.bitcast(take(of, vector_constant(_INT, by)), _FLOATS) for of in words)
            total = builder.call(fused, [*factors, total])
        return total

    return add_converted


@instruction(constants=("rows", "vectors"))
def multiply_tile(builder, lhs, row, depth, rhs, rhs_stride, start, out, group, rows, vectors):
    """Write the product of some rows and groups of columns to out; all sums stay in registers.

    Args:
        row, group: the first ones.
        rhs: pointer to the first group.
        rows, vectors: numbers of rows and groups.
        others: see `matmul.multiply`.
    """
    heights, widths = range(rows), range(vectors)
    word = rhs.type.pointee
    add = _adder(builder, word == _INT)

    def address(base, *offsets):
        for number, stride in offsets:
            base = builder.gep(base, [builder.mul(number, stride)])
        return base

    def fields(value):
        return [builder.extract_value(value, part) for part in range(len(value.type.elements))]

    def sums_at(values, i, j):
        base, row_stride, group_stride = fields(values)
        return address(base, (row, row_stride), (group, group_stride), (i, row_stride), (j, group_stride))

    tile = [(_LONG(i), _LONG(j)) for i in heights for j in widths]
    sums = [load_ir(builder, sums_at(start, i, j)) for i, j in tile]
    places = [sums_at(out, i, j) for i, j in tile]
    base, row_stride, word_stride, tile_stride = fields(lhs)
    base = address(base, (row, row_stride))

    before, loop = builder.block, builder.append_basic_block("sum")
    after = builder.append_basic_block("summed")
    builder.cbranch(builder.icmp_signed(">", depth, _LONG(0)), loop, after)
    builder.position_at_end(loop)
    k, running = builder.phi(_LONG), [builder.phi(_FLOATS) for _ in tile]
    right = [load_ir(builder, address(rhs, (k, _LONG(LANES)), (_LONG(j), rhs_stride))) for j in widths]
    in_tile = 2 * LANES if word != _INT else LANES
    column = address(base, (k, word_stride), (builder.udiv(k, _LONG(in_tile)), tile_stride))
    left = [
        splat_ir(builder, builder.load(address(column, (_LONG(i), row_stride)), align=4)) for i in heights
    ]
    results = [add(total, left[n // len(widths)], right[n % len(widths)]) for n, total in enumerate(running)]
    following = builder.add(k, _LONG(1))
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
    builder.position_at_end(after)
    totals = [builder.phi(_FLOATS) for _ in tile]
    k.add_incoming(_LONG(0), before)
    k.add_incoming(following, loop)
    for phi, total, first, result in zip(running, totals, sums, results, strict=True):
        for node in (phi, total):
            node.add_incoming(first, before)
            node.add_incoming(result, loop)
    for total, place in zip(totals, places, strict=True):
        store_ir(builder, place, total)
