"""Matrix products in vector registers, for `matmul.py`: of float32, and of bfloat16 without AMX."""

import platform
from collections.abc import Callable

from llvmlite import ir
from numba.core import types

from fastlstm.isa import uses
from fastlstm.simd import FLOATS, INTS, LANES, BFloat16, splat_ir

_BYTE, _INT, _LONG = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
_PAIRS = ir.VectorType(BFloat16(), 2 * LANES)
# Without the instruction, LLVM would call a function of the C library.
_FUSED = "fma" if uses("avx2") or platform.machine() not in ("x86_64", "AMD64") else "fmuladd"


def _adder(builder, in_pairs) -> Callable:
    """A function of sums and two operands, vectors of words, that returns the sums with the products."""
    kind = ir.FunctionType(FLOATS, [FLOATS, FLOATS, FLOATS])
    fused = builder.module.declare_intrinsic(f"llvm.{_FUSED}.v{LANES}f32", (), kind)
    if not in_pairs:
        return lambda total, left, right: builder.call(fused, [left, right, total])
    if uses("avx512_bf16"):
        kind = ir.FunctionType(FLOATS, [FLOATS, _PAIRS, _PAIRS])
        of_pairs = builder.module.declare_intrinsic("llvm.x86.avx512bf16.dpbf16ps.512", (), kind)
        return lambda total, *words: builder.call(
            of_pairs, [total, *(builder.bitcast(of, _PAIRS) for of in words)]
        )

    def add_converted(total, *words):
        for take, by in ((builder.shl, 16), (builder.and_, 0xFFFF0000)):
            factors = (builder.bitcast(take(of, ir.Constant(INTS, [by] * LANES)), FLOATS) for of in words)
            total = builder.call(fused, [*factors, total])
        return total

    return add_converted


def _at(builder, base, offset, kind):
    """The address, as one of values of a kind, some words after a pointer."""
    address = builder.gep(builder.bitcast(base, _BYTE), [builder.mul(offset, _LONG(4))])
    return builder.bitcast(address, kind.as_pointer())


def _load(builder, base, offset, kind):
    value = builder.load(_at(builder, base, offset, kind))
    value.align = 4
    return value


def generate_tile(context, builder, signature, arguments):
    """The code of `matmul.multiply_tile`: all sums of the tile stay in registers."""
    a, a_row, a_word, depth, panel, start, out, out_row, _, _ = arguments
    heights, widths = (range(signature.args[-2].literal_value), range(signature.args[-1].literal_value))
    tile = [(i, j) for i in heights for j in widths]
    in_pairs = signature.args[0].dtype == types.uint32
    word, add = _INT if in_pairs else ir.FloatType(), _adder(builder, in_pairs)
    places = [
        _at(builder, out, builder.add(builder.mul(out_row, _LONG(i)), _LONG(LANES * j)), FLOATS)
        for i, j in tile
    ]
    row_starts = [builder.mul(a_row, _LONG(i)) for i in heights]
    if isinstance(signature.args[5], types.NoneType):
        sums = [_load(builder, place, _LONG(0), FLOATS) for place in places]
    else:
        sums = [_load(builder, start, _LONG(LANES * j), FLOATS) for j in widths] * len(heights)

    before, loop = builder.block, builder.append_basic_block("sum")
    after = builder.append_basic_block("summed")
    builder.cbranch(builder.icmp_signed(">", depth, _LONG(0)), loop, after)
    builder.position_at_end(loop)
    k, running = builder.phi(_LONG), [builder.phi(FLOATS) for _ in tile]
    row, words = builder.mul(k, _LONG(LANES * len(widths))), ir.VectorType(word, LANES)
    right = [_load(builder, panel, builder.add(row, _LONG(LANES * j)), words) for j in widths]
    column, results = builder.mul(k, a_word), []
    for i in heights:
        left = splat_ir(builder, _load(builder, a, builder.add(row_starts[i], column), word))
        results += [add(running[len(widths) * i + j], left, right[j]) for j in widths]
    following = builder.add(k, _LONG(1))
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
    builder.position_at_end(after)
    totals = [builder.phi(FLOATS) for _ in tile]
    k.add_incoming(_LONG(0), before)
    k.add_incoming(following, loop)
    for phi, total, first, result in zip(running, totals, sums, results, strict=True):
        for each in (phi, total):
            each.add_incoming(first, before)
            each.add_incoming(result, loop)
    for total, place in zip(totals, places, strict=True):
        builder.store(total, place).align = 4
    return context.get_dummy_value()
