"""Matrix products in vector registers, for `matmul.py`: of float32, and of bfloat16 without AMX."""

import itertools
import platform
from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils

from fastlstm.isa import uses
from fastlstm.simd import (
    LANES,
    TILE,
    BFloat16,
    call_llvm,
    instruction,
    load_ir,
    splat_ir,
    store_ir,
    vector_constant,
)

_INT, _LONG = ir.IntType(32), ir.IntType(64)
_FLOATS, _PAIRS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(BFloat16(), 2 * LANES)
# Without the instruction, LLVM would call a function of the C library.
_FUSED = "fma" if uses("avx2") or platform.machine() not in ("x86_64", "AMD64") else "fmuladd"


def _adder(builder, in_pairs) -> Callable:
    """A function of sums and two operands, vectors of words, that returns the sums with the products."""

    def add(total, left, right):
        return call_llvm(builder, f"llvm.{_FUSED}.v{LANES}f32", _FLOATS, left, right, total)

    def add_pairs(total, *words):
        pairs = (builder.bitcast(word, _PAIRS) for word in words)
        return call_llvm(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _FLOATS, total, *pairs)

    def add_converted(total, *words):
        for operation, bits in ((builder.shl, 16), (builder.and_, 0xFFFF0000)):
            halves = (operation(word, vector_constant(_INT, bits)) for word in words)
            total = add(total, *(builder.bitcast(half, _FLOATS) for half in halves))
        return total

    return (add_pairs if uses("avx512_bf16") else add_converted) if in_pairs else add


@instruction(constants=("rows", "vectors"))
def multiply_tile(builder, lhs, row, depth, rhs, rhs_stride, start, out, group, rows, vectors):
    """Write the product of some rows and groups of columns to out; all sums stay in registers.

    Args:
        row, group: the first ones.
        rhs: pointer to the first group.
        rows, vectors: numbers of rows and groups.
        others: see `matmul.multiply`.
    """
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

    tile = [(_LONG(i), _LONG(j)) for i in range(rows) for j in range(vectors)]
    sums = [cgutils.alloca_once_value(builder, load_ir(builder, sums_at(start, i, j))) for i, j in tile]
    first, row_stride, word_stride, tile_stride = fields(lhs)
    with cgutils.for_range(builder, depth) as loop:
        k, words_of_tile = loop.index, TILE // 2 if word == _INT else TILE
        column = address(first, (row, row_stride), (k, word_stride))
        column = address(column, (builder.udiv(k, _LONG(words_of_tile)), tile_stride))
        places = [address(column, (_LONG(i), row_stride)) for i in range(rows)]
        left = [splat_ir(builder, builder.load(place, align=4)) for place in places]
        places = [address(rhs, (k, _LONG(LANES)), (_LONG(j), rhs_stride)) for j in range(vectors)]
        right = [load_ir(builder, place) for place in places]
        for total, (i, j) in zip(sums, itertools.product(left, right), strict=True):
            builder.store(add(builder.load(total), i, j), total)
    for total, (i, j) in zip(sums, tile, strict=True):
        store_ir(builder, sums_at(out, i, j), builder.load(total))
