"""Explicit float32 vectors for Numba: types, operators, and reading and writing of rows.

Numba makes vectors of loops over single values only if it can prove that no two arrays overlap. The functions
here are explicit. Vectors have LANES values, or WIDE: the rows of four samples. They have the operators +, -, *
with vectors of the same size and with float32. Arrays hold float32, or bfloat16 as uint16. LLVM splits a vector
into those of the processor.
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
FOUR = 4  # samples
WIDE = FOUR * LANES
CACHE_LINE = 64  # bytes
_INT, _LONG, _FLOAT, _SHORT = (ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(16))


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


def _shuffle(builder, left, right, lanes):
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(_INT, len(lanes)), list(lanes)))


def split(builder, value):
    """Consecutive parts of LANES of an LLVM vector."""
    starts = range(0, value.type.count, LANES)
    return [_shuffle(builder, value, value, range(start, start + LANES)) for start in starts]


def concatenate(builder, parts):
    """LLVM vector of one, two or four equal parts."""
    while len(parts) > 1:
        lanes = range(2 * parts[0].type.count)
        parts = [_shuffle(builder, *pair, lanes) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


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


def _item(context, builder, kinds, arguments):
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
    """Pointer to an item of an array, or, by its index, of another pointer.

    Hot loops use pointers, because Numba counts references to arrays. The caller must keep the array alive.
    """

    def generate(context, builder, signature, arguments):
        return _item(context, builder, signature.args, arguments)

    return types.CPointer(array.dtype)(array, indices), generate


@intrinsic
def as_words(typing_context, values):
    """Pointer to bfloat16 as uint16, seen as a pointer to pairs as uint32; others stay as they are."""
    dtype = types.uint32 if values.dtype == types.uint16 else values.dtype

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(dtype)(values), generate


def _to_float(builder, value):
    if value.type.element == _FLOAT:
        return value
    lanes = value.type.count
    bits = builder.zext(value, ir.VectorType(_INT, lanes))
    bits = builder.shl(bits, vector_constant(_INT, 16, lanes))
    return builder.bitcast(bits, ir.VectorType(_FLOAT, lanes))


def _from_float(builder, value, element):
    """LLVM vector as stored: of float32, or of bfloat16, rounded to nearest, ties to even."""
    if element == _FLOAT:
        return value
    lanes = value.type.count
    shorts = ir.VectorType(_SHORT, lanes)
    if uses("avx512_bf16"):
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(BFloat16(), lanes)), shorts)
    # LLVM would call a function for each lane.
    bits = builder.bitcast(value, ir.VectorType(_INT, lanes))
    sixteen, one = vector_constant(_INT, 16, lanes), vector_constant(_INT, 1, lanes)
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    rounded = builder.add(builder.add(bits, vector_constant(_INT, 0x7FFF, lanes)), odd)
    return builder.trunc(builder.lshr(rounded, sixteen), shorts)


def _load_raw(builder, address, lanes):
    element = address.type.pointee
    loaded = builder.load(builder.bitcast(address, ir.VectorType(element, lanes).as_pointer()))
    loaded.align = 2 if element == _SHORT else 4
    return loaded


def _store_raw(builder, address, value):
    store = builder.store(value, builder.bitcast(address, value.type.as_pointer()))
    store.align = 2 if value.type.element == _SHORT else 4


def _loader(lanes):
    @intrinsic
    def load(typing_context, source, index):
        def generate(context, builder, signature, arguments):
            address = _item(context, builder, signature.args, arguments)
            return _to_float(builder, _load_raw(builder, address, lanes))

        return Vector(lanes)(source, index), generate

    return load


# Vectors of consecutive items, from an index of a pointer on.
load, load_wide = _loader(LANES), _loader(WIDE)


@intrinsic
def store(typing_context, target, index, value):
    """Write a vector to consecutive items; in bfloat16 rounded to nearest, ties to even."""

    def generate(context, builder, signature, arguments):
        address = _item(context, builder, signature.args, arguments)
        _store_raw(builder, address, _from_float(builder, arguments[2], address.type.pointee))
        return context.get_dummy_value()

    return types.void(target, index, value), generate


@intrinsic
def store_rows(typing_context, target, index, stride, values):
    """Write each row of wide vectors, those of one sample side by side; the stride is of the samples."""

    def generate(context, builder, signature, arguments):
        first = _item(context, builder, signature.args, arguments)
        stride = context.cast(builder, arguments[2], signature.args[2], types.intp)
        values = (split(builder, value) for value in cgutils.unpack_tuple(builder, arguments[3]))
        for n, rows in enumerate(zip(*values, strict=True)):
            row = _from_float(builder, concatenate(builder, rows), first.type.pointee)
            _store_raw(builder, builder.gep(first, [builder.mul(stride, _LONG(n))]), row)
        return context.get_dummy_value()

    return types.void(target, index, stride, values), generate


def _some(context, builder, signature, arguments, count, masked):
    """Call LLVM's masked load or store of the first `count` lanes, or of all if there are fewer."""
    address = _item(context, builder, signature.args, arguments)
    element = address.type.pointee
    kind, align = ir.VectorType(element, LANES), _INT(2 if element == _SHORT else 4)
    count = builder.trunc(context.cast(builder, arguments[count], signature.args[count], types.intp), _INT)
    lanes = ir.Constant(ir.VectorType(_INT, LANES), list(range(LANES)))
    mask = builder.icmp_signed("<", lanes, splat_ir(builder, count))
    address = builder.bitcast(address, kind.as_pointer())
    if masked == "load":
        values, result = [address, align, mask, ir.Constant(kind, None)], kind
    else:
        values, result = [_from_float(builder, arguments[2], element), address, align, mask], ir.VoidType()
    function = ir.FunctionType(result, [value.type for value in values])
    name = f"llvm.masked.{masked}.v{LANES}{'i16' if element == _SHORT else 'f32'}.p0"
    return builder.call(builder.module.declare_intrinsic(name, (), function), values)


@intrinsic
def load_some(typing_context, source, index, count):
    """As `load`, of the first `count` or LANES items, the fewer; the other lanes are 0."""

    def generate(context, builder, signature, arguments):
        return _to_float(builder, _some(context, builder, signature, arguments, 2, "load"))

    return Vector(LANES)(source, index, count), generate


@intrinsic
def store_some(typing_context, target, index, value, count):
    """As `store`, of the vector's first `count` or LANES lanes, the fewer."""

    def generate(context, builder, signature, arguments):
        _some(context, builder, signature, arguments, 3, "store")
        return context.get_dummy_value()

    return types.void(target, index, value, count), generate


@intrinsic
def splat(typing_context, value):
    """Vector of LANES equal float32."""

    def generate(context, builder, signature, arguments):
        return splat_ir(builder, arguments[0])

    return Vector(LANES)(types.float32), generate


@intrinsic
def add_rows(typing_context, total, value):
    """Vector of LANES values plus the rows of a wide one."""

    def generate(context, builder, signature, arguments):
        def add(left, right):
            return builder.fadd(left, right, flags=("contract",))

        first, second, third, fourth = split(builder, arguments[1])
        return add(add(add(arguments[0], first), second), add(third, fourth))

    return total(total, value), generate


@intrinsic
def store_words(typing_context, out, index, values, first, second):
    """Write LANES words: float32 from an index on, or pairs of the bfloat16 from two indices on."""

    def generate(context, builder, signature, arguments):
        kinds = signature.args
        rows = [
            _load_raw(
                builder, _item(context, builder, (kinds[2], kinds[n]), (arguments[2], arguments[n])), LANES
            )
            for n in (3, 4)
        ]
        in_pairs = [lane for pair in zip(range(LANES), range(LANES, 2 * LANES), strict=True) for lane in pair]
        words = _shuffle(builder, *rows, in_pairs) if kinds[2].dtype == types.uint16 else rows[0]
        _store_raw(builder, _item(context, builder, kinds, arguments), words)
        return context.get_dummy_value()

    return types.void(out, index, values, first, second), generate


@intrinsic
def write_transposed(typing_context, source, source_stride, target, target_stride):
    """Write the transpose of LANES by LANES items of 32 bits.

    Args:
        source, target: pointers to the first items.
        source_stride, target_stride: items from one row to the next.
    """

    def generate(context, builder, signature, arguments):
        def row_addresses(base, stride):
            return [builder.gep(base, [builder.mul(stride, _LONG(number))]) for number in range(LANES)]

        source, source_stride, target, target_stride = arguments
        rows = [_load_raw(builder, address, LANES) for address in row_addresses(source, source_stride)]
        # Rows whose numbers differ in one bit exchange halves, then quarters, and so on.
        for distance in (8, 4, 2, 1):
            low = [lane + (LANES - distance if lane & distance else 0) for lane in range(LANES)]
            high = [lane + (LANES if lane & distance else distance) for lane in range(LANES)]
            for row in range(LANES):
                if not row & distance:
                    pair = rows[row], rows[row | distance]
                    rows[row], rows[row | distance] = (
                        _shuffle(builder, *pair, lanes) for lanes in (low, high)
                    )
        for address, row in zip(row_addresses(target, target_stride), rows, strict=True):
            _store_raw(builder, address, row)
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
        start = builder.bitcast(_item(context, builder, signature.args, arguments), byte)
        number = context.cast(builder, arguments[2], signature.args[2], types.intp)
        size = builder.mul(number, _LONG(signature.args[0].dtype.bitwidth // 8))
        with cgutils.for_range_slice(builder, _LONG(0), size, _LONG(CACHE_LINE)) as (offset, _):
            # To read, into all levels, data rather than instructions.
            builder.call(function, [builder.gep(start, [offset]), _INT(0), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.void(source, index, number), generate


@inner
def aligned(number, like):
    """Zeros of the type of an array, from the start of a cache line on.

    A vector that crosses a cache line is read and written twice.
    """
    spare = CACHE_LINE // like.itemsize
    flat = np.zeros(number + spare, like.dtype)
    start = -flat.ctypes.data % CACHE_LINE // like.itemsize
    return flat[start : start + number]
