"""Matrix products on AMX's tiles: bfloat16, summed in float32. Used by `matmul.py` where `ISA` is "amx".

A tile register holds 16 rows of 64 bytes. One instruction multiplies a tile of 16 rows by 16 pairs of
bfloat16 with a tile of 16 pairs by 16 columns, and adds the product to a tile of 16 by 16 float32 (Intel,
Architecture Instruction Set Extensions Programming Reference, "TDPBF16PS").
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fastlstm.jit import inner

SIDE = 16  # rows of a tile, and pairs or float32 in a row
_CONFIGURATION = 64  # bytes
_BYTE, _LONG = ir.IntType(8), ir.IntType(64)
_POINTER = _BYTE.as_pointer()
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
            _call(builder, name, builder.bitcast(array.data, _POINTER))
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


def _at(builder, base, *offsets):
    """The address some words after a pointer."""
    address = builder.bitcast(base, _POINTER)
    for offset in offsets:
        address = builder.gep(address, [builder.mul(offset, _LONG(4))])
    return address


def _start(builder, down, across, start, out, out_row):
    """Fill the sums' tiles: from a row of start, or, if that is None, from out."""
    for i in range(down):
        for j in range(across):
            if start is None:
                place, row = (
                    _at(builder, out, builder.mul(out_row, _LONG(SIDE * i)), _LONG(SIDE * j)),
                    out_row,
                )
            else:
                # Each row from the same address.
                place, row = _at(builder, start, _LONG(SIDE * j)), _LONG(0)
            _call(builder, "tileloadd64", _BYTE(_SUMS[i * across + j]), place, builder.mul(row, _LONG(4)))


def _add_products(builder, down, across, a, panel):
    """Add the products of a tile's depth; the left tiles are contiguous."""
    panel_row = _LONG(4 * SIDE * across)
    for j in range(across):
        _call(builder, "tileloadd64", _BYTE(_RIGHT[j]), _at(builder, panel, _LONG(SIDE * j)), panel_row)
        for i in range(down):
            if j == 0:
                left = _at(builder, a, _LONG(SIDE * SIDE * i))
                _call(builder, "tileloadd64", _BYTE(_LEFT[i]), left, _LONG(4 * SIDE))
            _call(builder, "tdpbf16ps", _BYTE(_SUMS[i * across + j]), _BYTE(_LEFT[i]), _BYTE(_RIGHT[j]))


def _store(builder, down, across, out, out_row):
    for i in range(down):
        for j in range(across):
            place = _at(builder, out, builder.mul(out_row, _LONG(SIDE * i)), _LONG(SIDE * j))
            _call(
                builder, "tilestored64", _BYTE(_SUMS[i * across + j]), place, builder.mul(out_row, _LONG(4))
            )


def generate_tile(context, builder, signature, arguments):
    """The code of `matmul.multiply_tile` for pairs of bfloat16.

    Its `rows` is 16 or 32, the depth a multiple of 16, and a has the layout of `matmul.Lhs`.
    """
    a, _, _, depth, panel, start, out, out_row, _, _ = arguments
    down, across = signature.args[-2].literal_value // SIDE, signature.args[-1].literal_value
    _start(builder, down, across, None if signature.args[5] == types.none else start, out, out_row)
    with cgutils.for_range(builder, builder.udiv(depth, _LONG(SIDE))) as loop:
        k = builder.mul(loop.index, _LONG(SIDE))
        _add_products(
            builder,
            down,
            across,
            _at(builder, a, builder.mul(k, _LONG(2 * SIDE))),
            _at(builder, panel, builder.mul(k, _LONG(SIDE * across))),
        )
    _store(builder, down, across, out, out_row)
    return context.get_dummy_value()


# The parts of a product of 32 rows and 16 or 32 columns, a constant 1 or 2 tiles across, for callers that do
# something else in between.


@intrinsic(prefer_literal=True)
def start_sums(typing_context, start, across):
    """Let the sums begin with float32 `(columns)`, the same for each row."""

    def generate(context, builder, signature, arguments):
        _start(builder, 2, signature.args[1].literal_value, arguments[0], None, None)
        return context.get_dummy_value()

    return types.void(start, across), generate


@intrinsic(prefer_literal=True)
def add_products(typing_context, a, panel, across):
    """Add the products of words `(32, 16)` and `(16, columns)`."""

    def generate(context, builder, signature, arguments):
        _add_products(builder, 2, signature.args[2].literal_value, *arguments[:2])
        return context.get_dummy_value()

    return types.void(a, panel, across), generate


@intrinsic(prefer_literal=True)
def store_sums(typing_context, out, out_row, across):
    """Write the sums to float32 `(32, columns)`, from one row to the next out_row."""

    def generate(context, builder, signature, arguments):
        _store(builder, 2, signature.args[2].literal_value, *arguments[:2])
        return context.get_dummy_value()

    return types.void(out, types.int64, across), generate
