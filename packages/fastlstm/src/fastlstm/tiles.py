"""Matrix products on AMX's tiles: bfloat16, summed in float32. Used by `matmul.py` where `ISA` is "amx".

A tile register holds 16 rows of 64 bytes. One instruction multiplies a tile of 16 rows by 16 pairs of
bfloat16 with a tile of 16 pairs by 16 columns, and adds the product to a tile of 16 by 16 float32 (Intel,
Architecture Instruction Set Extensions Programming Reference, "TDPBF16PS").
"""

import itertools

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastlstm.jit import inner

SIDE = 16  # rows of a tile, and pairs or float32 in a row
_CONFIGURATION = 64  # bytes
_BYTE, _LONG = ir.IntType(8), ir.IntType(64)
# Registers of the product's tiles, then of the two operands'.
_SUMS, _LEFT, _RIGHT = (0, 1, 2, 3), (4, 5), (6, 7)


def _call(builder, name, *arguments):
    kinds = [argument.type for argument in arguments]
    function = builder.module.declare_intrinsic(f"llvm.x86.{name}", (), ir.FunctionType(ir.VoidType(), kinds))
    builder.call(function, arguments)


def _on_bytes(name):
    """An intrinsic for an instruction with a configuration, 64 bytes, as its operand."""

    @intrinsic
    def instruction(typing_context, configuration):
        def generate(context, builder, signature, arguments):
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            _call(builder, name, builder.bitcast(array.data, _BYTE.as_pointer()))
            return context.get_dummy_value()

        return types.void(configuration), generate

    return instruction


_load_configuration, _store_configuration = _on_bytes("ldtilecfg"), _on_bytes("sttilecfg")


@intrinsic
def _release(typing_context):
    def generate(context, builder, signature, arguments):
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@inner
def configure_tiles():
    """Make this thread's tiles 16 rows of 64 bytes each.

    Returns:
        The configuration that somebody else, such as TensorFlow's oneDNN, had loaded in this thread and may
        rely on: for `restore_tiles`.
    """
    before, ours = np.zeros(_CONFIGURATION, np.uint8), np.zeros(_CONFIGURATION, np.uint8)
    _store_configuration(before)
    ours[0] = 1  # palette
    for tile in range(8):
        ours[16 + 2 * tile] = 4 * SIDE  # bytes of a row
        ours[48 + tile] = SIDE  # rows
    _load_configuration(ours)
    return before


@inner
def restore_tiles(before):
    if before[0] == 0:
        _release()
    else:
        _load_configuration(before)


def _on_sums(name):
    """An intrinsic that loads or stores the sums' tiles: values are `matmul.Sums`, from a row and group on."""

    @intrinsic(prefer_literal=True)
    def instruction(typing_context, values, row, group, down, across):
        def generate(context, builder, signature, arguments):
            values, row, group, *_ = arguments
            base, row_stride, group_stride = (builder.extract_value(values, part) for part in range(3))
            down, across = (kind.literal_value for kind in signature.args[3:])
            for register, (i, j) in zip(_SUMS, itertools.product(range(down), range(across)), strict=False):
                offset = builder.mul(row_stride, builder.add(row, _LONG(SIDE * i)))
                offset = builder.add(offset, builder.mul(group_stride, builder.add(group, _LONG(j))))
                _load_or_store(builder, name, register, base, offset, builder.mul(row_stride, _LONG(4)))
            return context.get_dummy_value()

        return types.void(values, types.int64, types.int64, down, across), generate

    return instruction


def _load_or_store(builder, name, register, base, offset, stride):
    place = builder.bitcast(builder.gep(base, [offset]), _BYTE.as_pointer())
    _call(builder, name, _BYTE(register), place, stride)


# The parts of a product of one or two tiles down and across, constants, for callers that do something else
# in between.
load_sums, store_sums = _on_sums("tileloadd64"), _on_sums("tilestored64")


@intrinsic(prefer_literal=True)
def add_products(typing_context, lhs, rhs, rhs_stride, down, across):
    """Add the products of words `(down, 16, 16)` and `(across, 16, 16)`; the stride is of the latter."""

    def generate(context, builder, signature, arguments):
        lhs, rhs, rhs_stride, *_ = arguments
        down, across = (kind.literal_value for kind in signature.args[3:])
        row = _LONG(4 * SIDE)
        for j in range(across):
            _load_or_store(builder, "tileloadd64", _RIGHT[j], rhs, builder.mul(rhs_stride, _LONG(j)), row)
            for i in range(down):
                if j == 0:
                    _load_or_store(builder, "tileloadd64", _LEFT[i], lhs, _LONG(SIDE * SIDE * i), row)
                registers = _SUMS[i * across + j], _LEFT[i], _RIGHT[j]
                _call(builder, "tdpbf16ps", *map(_BYTE, registers))
        return context.get_dummy_value()

    return types.void(lhs, rhs, types.int64, down, across), generate
