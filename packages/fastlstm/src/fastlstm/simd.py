"""Explicit float32 vectors for Numba: types, operators, and reading and writing of rows.

Numba makes vectors of loops over single values only if it can prove that no two arrays overlap. The functions
here are explicit. Vectors have one or four rows of LANES values, and the operators +, -, * with vectors of
the same size and with float32. Arrays hold float32, or bfloat16 as uint16. LLVM splits a vector into those of
the processor.
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
CACHE_LINE = 64  # bytes
_INT, _LONG, _FLOAT, _SHORT = (ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(16))
FLOATS, INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)


class BFloat16(ir.types.Type):
    """LLVM's type of that name, which llvmlite lacks."""

    def _to_string(self):
        return "bfloat"


class Vector(types.Type):
    """float32 vector type of some lanes."""

    def __init__(self, lanes):
        self.lanes = lanes
        super().__init__(f"vector{lanes}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(_FLOAT, kind.lanes))


def vector_constant(kind, value, lanes=LANES):
    """LLVM constant of equal lanes."""
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def splat_ir(builder, value, lanes=LANES):
    """LLVM vector of equal lanes."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, _INT(0))
    return builder.shuffle_vector(first, undefined, vector_constant(_INT, 0, lanes))


def split(builder, value, lanes=LANES):
    """Consecutive parts of an LLVM vector."""
    starts = range(0, value.type.count, lanes)
    masks = [ir.Constant(ir.VectorType(_INT, lanes), list(range(k, k + lanes))) for k in starts]
    return [builder.shuffle_vector(value, value, mask) for mask in masks]


def concatenate(builder, parts):
    """LLVM vector of one, two or four equal parts."""
    while len(parts) > 1:
        lanes = 2 * parts[0].type.count
        mask = ir.Constant(ir.VectorType(_INT, lanes), list(range(lanes)))
        parts = [builder.shuffle_vector(*pair, mask) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def call_by_lanes(builder, name, value, *others):
    """Call an LLVM function of LANES float32, and of other values, for each part of a vector."""
    parts = zip(
        split(builder, value),
        *(split(builder, v) if v.type == value.type else [v] * 4 for v in others),
        strict=False,
    )
    kinds = [FLOATS, *(FLOATS if v.type == value.type else v.type for v in others)]
    function = builder.module.declare_intrinsic(name, (), ir.FunctionType(FLOATS, kinds))
    return concatenate(builder, [builder.call(function, part) for part in parts])


def _operator(function, instruction):
    @type_callable(function)
    def type_operator(typing_context):
        def result(left, right):
            kinds = [kind for kind in (left, right) if isinstance(kind, Vector)]
            others = [kind for kind in (left, right) if kind == types.float32]
            if kinds and len(kinds) + len(others) == 2 and kinds[0] == kinds[-1]:
                return kinds[0]

        return result

    def generate(context, builder, signature, arguments):
        lanes = signature.return_type.lanes
        left, right = (
            value if isinstance(kind, Vector) else splat_ir(builder, value, lanes)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        return getattr(builder, instruction)(left, right, flags=("contract",))

    for kinds in ((Vector, Vector), (Vector, types.float32), (types.float32, Vector)):
        lower_builtin(function, *kinds)(generate)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")


def item(context, builder, kinds, arguments):
    """LLVM address of an item: of an array and a tuple of indices, or of a pointer and an index."""
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
    """Pointer to an item of an array, or, by its index, of another pointer; None remains None.

    Hot loops use pointers, because Numba counts references to arrays. The caller must keep the array alive.
    """
    if isinstance(array, types.NoneType):
        return types.none(array, indices), lambda context, *_: context.get_dummy_value()

    def generate(context, builder, signature, arguments):
        return item(context, builder, signature.args, arguments)

    return types.CPointer(array.dtype)(array, indices), generate


@intrinsic
def as_words(typing_context, values):
    """Pointer to bfloat16 as uint16, seen as a pointer to pairs as uint32; others stay as they are."""
    dtype = types.uint32 if values.dtype == types.uint16 else values.dtype

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype)(values), generate


def _from_shorts(builder, value):
    ints = ir.VectorType(_INT, value.type.count)
    bits = builder.shl(builder.zext(value, ints), vector_constant(_INT, 16, value.type.count))
    return builder.bitcast(bits, ir.VectorType(_FLOAT, value.type.count))


def _to_shorts(builder, value):
    """LLVM vector in bfloat16, rounded to nearest, ties to even."""
    lanes = value.type.count
    if uses("avx512_bf16"):
        parts = split(builder, value)
        name, kinds = "llvm.x86.avx512bf16.cvtneps2bf16.512", [FLOATS]
        groups = [[part] for part in parts]
        if len(parts) > 1:
            name, kinds = "llvm.x86.avx512bf16.cvtne2ps2bf16.512", [FLOATS, FLOATS]
            groups = zip(parts[1::2], parts[::2], strict=True)  # the upper half is the first operand
        halves = ir.VectorType(BFloat16(), len(kinds) * LANES)
        function = builder.module.declare_intrinsic(name, (), ir.FunctionType(halves, kinds))
        shorts = ir.VectorType(_SHORT, halves.count)
        return concatenate(
            builder, [builder.bitcast(builder.call(function, group), shorts) for group in groups]
        )
    bits = builder.bitcast(value, ir.VectorType(_INT, lanes))
    odd = builder.and_(builder.lshr(bits, vector_constant(_INT, 16, lanes)), vector_constant(_INT, 1, lanes))
    rounded = builder.add(builder.add(bits, vector_constant(_INT, 0x7FFF, lanes)), odd)
    rounded = builder.lshr(rounded, vector_constant(_INT, 16, lanes))
    return builder.trunc(rounded, ir.VectorType(_SHORT, lanes))


def _load(builder, address, lanes):
    value = address.type.pointee
    place = builder.bitcast(address, ir.VectorType(value, lanes).as_pointer())
    loaded = builder.load(place)
    loaded.align = 2 if value == _SHORT else 4
    return _from_shorts(builder, loaded) if value == _SHORT else loaded


def _store(builder, address, value):
    in_shorts = address.type.pointee == _SHORT
    value = _to_shorts(builder, value) if in_shorts else value
    builder.store(value, builder.bitcast(address, value.type.as_pointer())).align = 2 if in_shorts else 4


@intrinsic
def load(typing_context, source, index):
    """Vector of LANES consecutive items."""

    def generate(context, builder, signature, arguments):
        return _load(builder, item(context, builder, signature.args, arguments), LANES)

    return Vector(LANES)(source, index), generate


@intrinsic(prefer_literal=True)
def load_rows(typing_context, source, index, stride, rows):
    """Vector of LANES consecutive items of each of some rows, a constant: 1 or 4."""

    def generate(context, builder, signature, arguments):
        first = item(context, builder, signature.args, arguments)
        stride = context.cast(builder, arguments[2], signature.args[2], types.intp)
        addresses = [builder.gep(first, [builder.mul(stride, _LONG(k))]) for k in range(rows.literal_value)]
        return concatenate(builder, [_load(builder, address, LANES) for address in addresses])

    return Vector(LANES * rows.literal_value)(source, index, stride, rows), generate


@intrinsic
def store(typing_context, target, index, value):
    """Write a vector to consecutive items; in bfloat16 rounded to nearest, ties to even."""

    def generate(context, builder, signature, arguments):
        _store(builder, item(context, builder, signature.args, arguments), arguments[2])
        return context.get_dummy_value()

    return types.void(target, index, value), generate


def _store_rows(context, builder, signature, arguments):
    """Write the rows of the vectors from the fourth argument on, side by side."""
    first = item(context, builder, signature.args, arguments)
    stride = context.cast(builder, arguments[2], signature.args[2], types.intp)
    for k, row in enumerate(zip(*(split(builder, value) for value in arguments[3:]), strict=True)):
        _store(builder, builder.gep(first, [builder.mul(stride, _LONG(k))]), concatenate(builder, row))
    return context.get_dummy_value()


@intrinsic
def store_rows(typing_context, target, index, stride, value):
    """Write each row of a vector to where `load_rows` would read it."""
    return types.void(target, index, stride, value), _store_rows


@intrinsic
def store_row_pairs(typing_context, target, index, stride, left, right):
    """Write each row of a vector, followed by that of another one."""
    return types.void(target, index, stride, left, right), _store_rows


def _mask(builder, count):
    """LLVM mask of the first `count` lanes, or of all if there are fewer."""
    lanes = ir.Constant(INTS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, splat_ir(builder, builder.trunc(count, _INT)))


@intrinsic
def load_some(typing_context, source, index, count):
    """As `load`, of the first `count` or LANES items, the fewer; the other lanes are 0."""

    def generate(context, builder, signature, arguments):
        address = item(context, builder, signature.args, arguments)
        value = address.type.pointee
        kind = ir.VectorType(value, LANES)
        address = builder.bitcast(address, kind.as_pointer())
        mask = _mask(builder, context.cast(builder, arguments[2], signature.args[2], types.intp))
        function = builder.module.declare_intrinsic(
            f"llvm.masked.load.v{LANES}{'i16' if value == _SHORT else 'f32'}.p0",
            (),
            ir.FunctionType(kind, [address.type, _INT, mask.type, kind]),
        )
        align = _INT(2 if value == _SHORT else 4)
        loaded = builder.call(function, [address, align, mask, ir.Constant(kind, None)])
        return _from_shorts(builder, loaded) if value == _SHORT else loaded

    return Vector(LANES)(source, index, count), generate


@intrinsic
def store_some(typing_context, target, index, value, count):
    """As `store`, of the vector's first `count` or LANES lanes, the fewer."""

    def generate(context, builder, signature, arguments):
        address, value = item(context, builder, signature.args, arguments), arguments[2]
        in_shorts = address.type.pointee == _SHORT
        value = _to_shorts(builder, value) if in_shorts else value
        address = builder.bitcast(address, value.type.as_pointer())
        mask = _mask(builder, context.cast(builder, arguments[3], signature.args[3], types.intp))
        function = builder.module.declare_intrinsic(
            f"llvm.masked.store.v{LANES}{'i16' if in_shorts else 'f32'}.p0",
            (),
            ir.FunctionType(ir.VoidType(), [value.type, address.type, _INT, mask.type]),
        )
        builder.call(function, [value, address, _INT(2 if in_shorts else 4), mask])
        return context.get_dummy_value()

    return types.void(target, index, value, count), generate


@intrinsic
def splat(typing_context, value):
    """Vector of LANES equal float32."""

    def generate(context, builder, signature, arguments):
        return splat_ir(builder, arguments[0])

    return Vector(LANES)(types.float32), generate


@intrinsic
def join(typing_context, first, second, third, fourth):
    """Vector of four rows."""

    def generate(context, builder, signature, arguments):
        return concatenate(builder, arguments)

    return Vector(4 * LANES)(first, second, third, fourth), generate


@intrinsic
def rows_of(typing_context, value):
    """Tuple of the rows of a vector of four."""

    def generate(context, builder, signature, arguments):
        return context.make_tuple(builder, signature.return_type, split(builder, arguments[0]))

    return types.UniTuple(Vector(LANES), value.lanes // LANES)(value), generate


@intrinsic
def add_rows(typing_context, total, value):
    """Vector of LANES values plus the rows of another vector."""

    def generate(context, builder, signature, arguments):
        def add(left, right):
            return builder.fadd(left, right, flags=("contract",))

        total, (first, *others) = arguments[0], split(builder, arguments[1])
        total = add(total, first)
        return add(add(total, others[0]), add(*others[1:])) if others else total

    return total(total, value), generate


@intrinsic
def write_transposed(typing_context, source, source_stride, target, target_stride):
    """Write the transpose of LANES by LANES items of 32 bits.

    Args:
        source, target: pointers to the first items.
        source_stride, target_stride: items from one row to the next.
    """

    def generate(context, builder, signature, arguments):
        def row_addresses(base, stride):
            return [
                builder.bitcast(builder.gep(base, [builder.mul(stride, _LONG(number))]), INTS.as_pointer())
                for number in range(LANES)
            ]

        source, source_stride, target, target_stride = arguments
        rows = [builder.load(address) for address in row_addresses(source, source_stride)]
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
        for address, row in zip(row_addresses(target, target_stride), rows, strict=True):
            builder.store(row, address).align = 4
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), generate


@intrinsic
def prefetch(typing_context, source, index, number):
    """Prefetch `number` consecutive items into the nearest cache."""

    def generate(context, builder, signature, arguments):
        byte = ir.IntType(8).as_pointer()
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
        )
        start = builder.bitcast(item(context, builder, signature.args, arguments), byte)
        number = context.cast(builder, arguments[2], signature.args[2], types.intp)
        size = builder.mul(number, _LONG(signature.args[0].dtype.bitwidth // 8))
        with cgutils.for_range_slice(builder, _LONG(0), size, _LONG(CACHE_LINE)) as (offset, _):
            # To read, into all levels, data rather than instructions.
            builder.call(function, [builder.gep(start, [offset]), _INT(0), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.void(source, index, number), generate


@inner
def aligned(number, like):
    """Uninitialized array of the type of another one that begins at the start of a cache line.

    A vector that crosses a cache line is read and written twice.
    """
    spare = CACHE_LINE // like.itemsize
    flat = np.empty(number + spare, like.dtype)
    start = -flat.ctypes.data % CACHE_LINE // like.itemsize
    return flat[start : start + number]
