"""Vectors of float32, for compiled code: what the compiler would have to find out by itself, said outright.

Given loops over single values, it makes vectors of them only where it can prove that no two arrays overlap,
and leaves the rest of a loop, all of it if it is short, to single values. In compiled code a `vector` is read
from and written to arrays of float32, or of bfloat16 as uint16, and has the operators +, -, * with vectors
and with float32. LLVM makes of it whatever vectors the processor has.
"""

import operator

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, lower_builtin, register_model, type_callable

from fastlstm.isa import uses
from fastlstm.jit import inner

LANES = 16

FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTS = ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
CACHE_LINE = 64  # bytes


class BFloat16(ir.types.Type):
    """LLVM's type of that name, which llvmlite lacks."""

    def _to_string(self):
        return "bfloat"


class _Vector(types.Type):
    def __init__(self):
        super().__init__("vector")


vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, FLOATS)


def broadcast_ir(builder, value):
    """A vector of one value, in LLVM."""
    nothing = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(nothing, value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(INTS, [0] * LANES))


def _operator(function, instruction):
    kinds = ((vector, vector), (vector, types.float32), (types.float32, vector))

    @type_callable(function)
    def type_operator(typing_context):
        def result(left, right):
            return vector if (left, right) in kinds else None

        return result

    def generate(context, builder, signature, arguments):
        left, right = (
            value if kind == vector else broadcast_ir(builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        return getattr(builder, instruction)(left, right, flags=("contract",))

    for pair in kinds:
        lower_builtin(function, *pair)(generate)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")


def item(context, builder, kinds, arguments):
    """The address of an item, in LLVM.

    An intrinsic's first two arguments give it: an array and a tuple of indices, or a pointer and an index.
    """
    kind = kinds[0]
    if isinstance(kind, types.CPointer):
        return builder.gep(arguments[0], [context.cast(builder, arguments[1], kinds[1], types.intp)])
    array = context.make_array(kind)(context, builder, arguments[0])
    indices = [
        context.cast(builder, index, of, types.intp)
        for of, index in zip(kinds[1], cgutils.unpack_tuple(builder, arguments[1]), strict=True)
    ]
    return cgutils.get_item_pointer(context, builder, kind, array, indices)


@intrinsic
def pointer(typing_context, array, indices):
    """A pointer to an item of an array, or, by its index, of another pointer.

    Hot loops use pointers: Numba counts references to arrays, also where a function is inlined in a loop.
    Whoever makes a pointer must keep the array alive: the caller of the function does, if it is an argument.
    """

    def generate(context, builder, signature, arguments):
        return item(context, builder, signature.args, arguments)

    return types.CPointer(array.dtype)(array, indices), generate


@intrinsic
def read(typing_context, array, indices):
    """The vector that begins at an item of an array whose last dimension is contiguous."""

    def generate(context, builder, signature, arguments):
        address = item(context, builder, signature.args, arguments)
        in_shorts = signature.args[0].dtype == types.uint16
        value = builder.load(builder.bitcast(address, (_SHORTS if in_shorts else FLOATS).as_pointer()))
        value.align = 2 if in_shorts else 4
        if in_shorts:
            bits = builder.shl(builder.zext(value, INTS), ir.Constant(INTS, [16] * LANES))
            return builder.bitcast(bits, FLOATS)
        return value

    return vector(array, indices), generate


def _masked(builder, count):
    """Masks of the first `count` lanes, in LLVM; all of them if `count` is larger."""
    lanes = ir.Constant(INTS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, broadcast_ir(builder, builder.trunc(count, ir.IntType(32))))


@intrinsic
def read_some(typing_context, array, indices, count):
    """As `read`, of `count` or LANES items, the fewer; the other lanes are 0."""

    def generate(context, builder, signature, arguments):
        in_shorts = signature.args[0].dtype == types.uint16
        kind = _SHORTS if in_shorts else FLOATS
        address = builder.bitcast(item(context, builder, signature.args, arguments), kind.as_pointer())
        count = context.cast(builder, arguments[2], signature.args[2], types.intp)
        mask = _masked(builder, count)
        name = f"llvm.masked.load.v{LANES}{'i16' if in_shorts else 'f32'}"
        function = builder.module.declare_intrinsic(
            f"{name}.p0", (), ir.FunctionType(kind, [address.type, ir.IntType(32), mask.type, kind])
        )
        value = builder.call(
            function, [address, ir.IntType(32)(2 if in_shorts else 4), mask, ir.Constant(kind, None)]
        )
        if in_shorts:
            bits = builder.shl(builder.zext(value, INTS), ir.Constant(INTS, [16] * LANES))
            return builder.bitcast(bits, FLOATS)
        return value

    return vector(array, indices, count), generate


@intrinsic
def write_some(typing_context, array, indices, value, count):
    """As `write`, of the vector's first `count` lanes, or all if there are fewer."""

    def generate(context, builder, signature, arguments):
        in_shorts = signature.args[0].dtype == types.uint16
        value = _rounded(builder, arguments[2]) if in_shorts else arguments[2]
        address = builder.bitcast(item(context, builder, signature.args, arguments), value.type.as_pointer())
        count = context.cast(builder, arguments[3], signature.args[3], types.intp)
        mask = _masked(builder, count)
        name = f"llvm.masked.store.v{LANES}{'i16' if in_shorts else 'f32'}"
        function = builder.module.declare_intrinsic(
            f"{name}.p0",
            (),
            ir.FunctionType(ir.VoidType(), [value.type, address.type, ir.IntType(32), mask.type]),
        )
        builder.call(function, [value, address, ir.IntType(32)(2 if in_shorts else 4), mask])
        return context.get_dummy_value()

    return types.void(array, indices, value, count), generate


def _rounded(builder, value):
    """A vector in bfloat16, rounded to nearest, ties to even, in LLVM."""

    def constant(number):
        return ir.Constant(INTS, [number] * LANES)

    bits = builder.bitcast(value, INTS)
    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)
    return builder.trunc(builder.lshr(rounded, constant(16)), _SHORTS)


@intrinsic
def write(typing_context, array, indices, value):
    """A vector to where `read` would find it; in bfloat16 rounded to nearest, ties to even."""

    def generate(context, builder, signature, arguments):
        address, value = item(context, builder, signature.args, arguments), arguments[2]
        in_shorts = signature.args[0].dtype == types.uint16
        if in_shorts and uses("avx512_bf16"):
            halves = ir.VectorType(BFloat16(), LANES)
            function = builder.module.declare_intrinsic(
                "llvm.x86.avx512bf16.cvtneps2bf16.512", (), ir.FunctionType(halves, [FLOATS])
            )
            value = builder.bitcast(builder.call(function, [value]), _SHORTS)
        elif in_shorts:
            value = _rounded(builder, value)
        builder.store(value, builder.bitcast(address, value.type.as_pointer())).align = 2 if in_shorts else 4
        return context.get_dummy_value()

    return types.void(array, indices, value), generate


@intrinsic
def write_pair(typing_context, array, indices, low, high):
    """Two vectors side by side, each as `write` would put it."""

    def generate(context, builder, signature, arguments):
        address = item(context, builder, signature.args, arguments)
        low, high = arguments[2:]
        if signature.args[0].dtype == types.uint16 and uses("avx512_bf16"):
            pair = ir.VectorType(BFloat16(), 2 * LANES)
            function = builder.module.declare_intrinsic(
                "llvm.x86.avx512bf16.cvtne2ps2bf16.512", (), ir.FunctionType(pair, [FLOATS, FLOATS])
            )
            shorts = ir.VectorType(ir.IntType(16), 2 * LANES)
            value = builder.bitcast(builder.call(function, [high, low]), shorts)
            builder.store(value, builder.bitcast(address, shorts.as_pointer())).align = 2
            return context.get_dummy_value()
        in_shorts = signature.args[0].dtype == types.uint16
        kind = (_SHORTS if in_shorts else FLOATS).as_pointer()
        place = builder.bitcast(address, kind)
        for number, value in enumerate((low, high)):
            if in_shorts:
                value = _rounded(builder, value)
            target = builder.gep(place, [ir.IntType(64)(number)])
            builder.store(value, target).align = 2 if in_shorts else 4
        return context.get_dummy_value()

    return types.void(array, indices, low, high), generate


@intrinsic
def write_transposed(typing_context, source, source_row, target, target_row):
    """Write the transpose of LANES by LANES items of 32 bits.

    Args:
        source, target: pointers to the first items; source_row, target_row: items from one row to the next.
    """

    def generate(context, builder, signature, arguments):
        def row_addresses(base, row):
            return [
                builder.bitcast(builder.gep(base, [builder.mul(row, row.type(number))]), INTS.as_pointer())
                for number in range(LANES)
            ]

        source, source_row, target, target_row = arguments
        rows = [builder.load(address) for address in row_addresses(source, source_row)]
        for row in rows:
            row.align = 4
        # Rows whose numbers differ in one bit exchange halves, then quarters, and so on.
        for distance in (8, 4, 2, 1):
            low = [lane + (LANES - distance if lane & distance else 0) for lane in range(LANES)]
            high = [lane + (LANES if lane & distance else distance) for lane in range(LANES)]
            for row in range(LANES):
                if not row & distance:
                    pair = rows[row], rows[row | distance]
                    rows[row], rows[row | distance] = (
                        builder.shuffle_vector(*pair, ir.Constant(INTS, lanes)) for lanes in (low, high)
                    )
        for address, row in zip(row_addresses(target, target_row), rows, strict=True):
            builder.store(row, address).align = 4
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), generate


@intrinsic
def prefetch(typing_context, array, indices, number):
    """Start to fetch `number` values of the last dimension, from an item on, into the nearest cache."""

    def generate(context, builder, signature, arguments):
        byte, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, int32, int32, int32])
        )
        start = builder.bitcast(item(context, builder, signature.args, arguments), byte)
        number = context.cast(builder, arguments[2], signature.args[2], types.intp)
        size = builder.mul(number, number.type(signature.args[0].dtype.bitwidth // 8))
        with cgutils.for_range_slice(builder, size.type(0), size, size.type(CACHE_LINE)) as (offset, _):
            # To read, into all levels, data rather than instructions.
            builder.call(function, [builder.gep(start, [offset]), int32(0), int32(3), int32(1)])
        return context.get_dummy_value()

    return types.void(array, indices, number), generate


@inner
def aligned(number, like):
    """An empty array of another's type that begins at the start of a cache line.

    Vectors that lie across two lines are read and written twice.
    """
    spare = CACHE_LINE // like.itemsize
    flat = np.empty(number + spare, like.dtype)
    start = -flat.ctypes.data % CACHE_LINE // like.itemsize
    return flat[start : start + number]


@intrinsic
def broadcast(typing_context, value):
    """A vector of one float32."""

    def generate(context, builder, signature, arguments):
        return broadcast_ir(builder, arguments[0])

    return vector(types.float32), generate
