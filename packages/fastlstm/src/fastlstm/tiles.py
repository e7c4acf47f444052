"""Matrix products on AMX's tiles: bfloat16, summed in float32. Used by `matmul.py` where `ISA` is "amx".

A tile register holds 16 rows of 64 bytes. One instruction multiplies a tile of 16 rows by 16 pairs of
bfloat16 with a tile of 16 pairs by 16 columns, and adds the product to a tile of 16 by 16 float32 (Intel,
Architecture Instruction Set Extensions Programming Reference, "TDPBF16PS").
"""

import itertools

import numpy as np
from llvmlite import ir

from fastlstm.isa import uses
from fastlstm.jit import inner
from fastlstm.simd import call_llvm, instruction, pointer

SIDE = 16  # rows of a tile, and pairs or float32 in a row
_CONFIGURATION = 64  # bytes
_BYTE, _LONG = ir.IntType(8), ir.IntType(64)
# Registers of the product's tiles, then of the two operands'.
_SUMS, _LEFT, _RIGHT = (0, 1, 2, 3), (4, 5), (6, 7)


def call(builder, name, *arguments):
    """Call one of LLVM's functions for AMX."""
    if uses("amx"):  # else it is in code that is never reached
        call_llvm(builder, f"llvm.x86.{name}", ir.VoidType(), *arguments)


@instruction()
def load_configuration(builder, configuration):
    """Configure this thread's tiles; a configuration of zeros, palette 0, releases them."""
    call(builder, "ldtilecfg", builder.bitcast(configuration, _BYTE.as_pointer()))


@instruction()
def _store_configuration(builder, configuration):
    call(builder, "sttilecfg", builder.bitcast(configuration, _BYTE.as_pointer()))


@inner
def configure_tiles():
    """Make this thread's tiles 16 rows of 64 bytes each.

    Returns:
        The configuration that somebody else, such as TensorFlow's oneDNN, had loaded in this thread and may
        rely on: for `load_configuration`.
    """
    before, ours = np.zeros(_CONFIGURATION, np.uint8), np.zeros(_CONFIGURATION, np.uint8)
    _store_configuration(pointer(before, (0,)))
    ours[0] = 1  # palette
    for tile in range(8):
        ours[16 + 2 * tile] = 4 * SIDE  # bytes of a row
        ours[48 + tile] = SIDE  # rows
    load_configuration(pointer(ours, (0,)))
    ours[0] = 0  # pointers do not keep arrays alive
    return before


# The parts of a product of one or two tiles down and across, constants, for callers that do something else
# in between.


@instruction(constants=("down", "across", "name"))
def move_sums(builder, sums, row, group, down, across, name):
    """Load or store the product's tiles: `matmul.Accumulators`, from a row and a group of columns on.

    The name is that of the instruction, `"tileloadd64"` or `"tilestored64"`.
    """
    base, row_stride, group_stride = (builder.extract_value(sums, part) for part in range(3))
    for register, (i, j) in zip(_SUMS, itertools.product(range(down), range(across)), strict=False):
        offset = builder.mul(row_stride, builder.add(row, _LONG(SIDE * i)))
        offset = builder.add(offset, builder.mul(group_stride, builder.add(group, _LONG(j))))
        _move(builder, name, register, base, offset, builder.mul(row_stride, _LONG(4)))


def _move(builder, name, register, base, offset, stride):
    place = builder.bitcast(builder.gep(base, [offset]), _BYTE.as_pointer())
    call(builder, name, _BYTE(register), place, stride)


@instruction(constants=("down", "across"))
def add_products(builder, lhs, rhs, rhs_stride, down, across):
    """Add the products of words `(down, 16, 16)` and `(across, 16, 16)`; the stride is of the latter."""
    row = _LONG(4 * SIDE)
    for j in range(across):
        _move(builder, "tileloadd64", _RIGHT[j], rhs, builder.mul(rhs_stride, _LONG(j)), row)
        for i in range(down):
            if j == 0:
                _move(builder, "tileloadd64", _LEFT[i], lhs, _LONG(SIDE * SIDE * i), row)
            call(builder, "tdpbf16ps", *map(_BYTE, (_SUMS[i * across + j], _LEFT[i], _RIGHT[j])))
