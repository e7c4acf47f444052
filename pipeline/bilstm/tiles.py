"""Matrix products on AMX's tiles: bfloat16, summed in float32. Used by `matmul.py` where `ISA` is "amx".

A tile register holds 16 rows of 64 bytes. One instruction multiplies a tile of 16 rows by 16 pairs of
bfloat16 with a tile of 16 pairs by 16 columns, and adds the product to a tile of 16 by 16 float32 (Intel,
Architecture Instruction Set Extensions Programming Reference, "TDPBF16PS").
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from pipeline.bilstm.jit import compiled

SIDE = 16  # rows of a tile, and pairs or float32 in a row
_CONFIGURATION = 64  # bytes
_BYTE, _LONG = ir.IntType(8), ir.IntType(64)
_POINTER = _BYTE.as_pointer()
# Registers of the product's tiles, then of the two operands'.
_SUMS, _LEFT, _RIGHT = (0, 1, 2, 3), (4, 5), (6, 7)


def _call(builder, name, *arguments):
    kinds = [argument.type for argument in arguments]
    function = builder.module.declare_intrinsic(
        f"llvm.x86.{name}", (), ir.FunctionType(ir.VoidType(), kinds))
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


@compiled
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


@compiled
def restore_tiles(before):
    if before[0] == 0:
        _release()
    else:
        _load_configuration(before)


def generate_tile(context, builder, signature, arguments):
    """The code of `matmul.multiply_tile` for pairs of bfloat16.

    Its `rows` is 16 or 32, the depth a multiple of 16.
    """
    down = range(signature.args[4].literal_value // SIDE)
    across = range(signature.args[5].literal_value)
    from_out = isinstance(signature.args[2], types.NoneType)
    a, panel, start, out = (None if isinstance(kind, types.NoneType)
                            else context.make_array(kind)(context, builder, value)
                            for kind, value in zip(signature.args[:4], arguments))
    depth = cgutils.unpack_tuple(builder, a.shape, 2)[1]
    a_bytes = cgutils.unpack_tuple(builder, a.strides, 2)[0]
    out_bytes = cgutils.unpack_tuple(builder, out.strides, 2)[0]
    tile_bytes = 4 * SIDE
    panel_bytes = _LONG(tile_bytes * len(across))

    def at(base, *offsets):
        address = builder.bitcast(base, _POINTER)
        for offset in offsets:
            address = builder.gep(address, [offset])
        return address

    def each_sum():
        for i in down:
            for j in across:
                place = (builder.mul(out_bytes, _LONG(SIDE * i)), _LONG(tile_bytes * j))
                yield _BYTE(_SUMS[i * len(across) + j]), i, j, place

    for register, _, j, place in each_sum():
        if from_out:
            _call(builder, "tileloadd64", register, at(out.data, *place), out_bytes)
        else:
            # Each row from the same address.
            _call(builder, "tileloadd64", register, at(start.data, place[1]), _LONG(0))
    with cgutils.for_range(builder, builder.udiv(depth, _LONG(SIDE))) as loop:
        left = [at(a.data, builder.mul(loop.index, _LONG(tile_bytes)),
                   builder.mul(a_bytes, _LONG(SIDE * i))) for i in down]
        right = at(panel.data, builder.mul(loop.index, builder.mul(panel_bytes, _LONG(SIDE))))
        for j in across:
            _call(builder, "tileloadd64", _BYTE(_RIGHT[j]), at(right, _LONG(tile_bytes * j)), panel_bytes)
            for i in down:
                if j == 0:
                    _call(builder, "tileloadd64", _BYTE(_LEFT[i]), left[i], a_bytes)
                _call(builder, "tdpbf16ps", _BYTE(_SUMS[i * len(across) + j]), _BYTE(_LEFT[i]),
                      _BYTE(_RIGHT[j]))
    for register, _, _, place in each_sum():
        _call(builder, "tilestored64", register, at(out.data, *place), out_bytes)
    return context.get_dummy_value()
