"""Explicit float32 vectors for Numba: types, operators, and reading and writing of rows.

Numba vectorizes scalar loops only if it can prove that the arrays do not alias. The functions here are
explicit. Vectors have LANES values, or WIDE: a row of each of four samples. They have the operators
+, -, * with vectors of the same size and with float32. Arrays hold float32, or bfloat16 as uint16. LLVM
splits a vector into those of the processor.
"""

import functools
import inspect
import operator

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, lower_builtin, register_model, type_callable

from fastlstm.isa import uses
from fastlstm.jit import inner

LANES = 16
SAMPLES = 4  # in a wide vector, one row each
WIDE = SAMPLES * LANES
TILE = 2 * LANES  # columns of states that are stored side by side, see `matmul.py`
CACHE_LINE = 64  # bytes
_INT, _LONG, _FLOAT, _SHORT = (ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(16))


def instruction(result=lambda *kinds: types.void, constants=()):
    """Decorator: turn a generator of LLVM code, function(builder, *values), into an intrinsic of Numba.

    Args:
        result: function(types of the arguments) that returns the type of the result.
        constants: names of arguments that are constants; the generator gets their values.
    """

    def decorate(generate):
        names = list(inspect.signature(generate).parameters)[1:]

        @functools.wraps(generate)  # Numba takes the names of the arguments from the generator
        def definition(typing_context, *kinds):
            kinds = [
                types.intp if isinstance(kind, types.Integer) and name not in constants else kind
                for name, kind in zip(names, kinds, strict=True)
            ]

            def code(context, builder, signature, arguments):
                values = [
                    kind.literal_value if name in constants else value
                    for name, kind, value in zip(names, kinds, arguments, strict=True)
                ]
                value = generate(builder, *values)
                return context.get_dummy_value() if value is None else value

            return result(*kinds)(*kinds), code

        return intrinsic(prefer_literal=bool(constants))(definition)

    return decorate


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


def call_llvm(builder, name, result, *values):
    """Call one of LLVM's intrinsic functions, which returns the type `result`."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(builder.module.declare_intrinsic(name, (), kind), values)


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


@intrinsic
def pointer(typing_context, array, indices):
    """Pointer to an item of an array, by a tuple of indices, or, by one index, of another pointer.

    Hot loops use pointers, because Numba counts references to arrays. The caller must keep the array alive.
    """

    def generate(context, builder, signature, arguments):
        kind, indices = signature.args
        if isinstance(kind, types.CPointer):
            return builder.gep(arguments[0], [context.cast(builder, arguments[1], indices, types.intp)])
        array = context.make_array(kind)(context, builder, arguments[0])
        values = zip(indices, cgutils.unpack_tuple(builder, arguments[1]), strict=True)
        values = [context.cast(builder, index, of, types.intp) for of, index in values]
        return cgutils.get_item_pointer(context, builder, kind, array, values)

    return types.CPointer(array.dtype)(array, indices), generate


@instruction(lambda values: types.CPointer(types.uint32) if values.dtype == types.uint16 else values)
def as_words(builder, values):
    """Pointer to bfloat16 as uint16, seen as a pointer to pairs as uint32; others stay as they are."""
    is_short = values.type.pointee == _SHORT
    return builder.bitcast(values, _INT.as_pointer()) if is_short else values


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


def _row_at(builder, first, stride, number):
    return builder.gep(first, [builder.mul(stride, _LONG(number))])


def load_ir(builder, address, lanes=LANES):
    """LLVM vector of consecutive items."""
    element = address.type.pointee
    loaded = builder.load(builder.bitcast(address, ir.VectorType(element, lanes).as_pointer()))
    loaded.align = 2 if element == _SHORT else 4
    return loaded


def store_ir(builder, address, value):
    """Write an LLVM vector to consecutive items."""
    store = builder.store(value, builder.bitcast(address, value.type.as_pointer()))
    store.align = 2 if value.type.element == _SHORT else 4


@instruction(lambda source, index: Vector(LANES))
def load(builder, source, index):
    """Vector of LANES consecutive items, from an index of a pointer on."""
    return _to_float(builder, load_ir(builder, builder.gep(source, [index])))


@instruction(lambda source, index: Vector(WIDE))
def load_wide(builder, source, index):
    """Vector of WIDE consecutive items."""
    return _to_float(builder, load_ir(builder, builder.gep(source, [index]), WIDE))


@instruction()
def store(builder, target, index, value):
    """Write a vector to consecutive items; in bfloat16 rounded to nearest, ties to even."""
    store_ir(builder, builder.gep(target, [index]), _from_float(builder, value, target.type.pointee))


@instruction(lambda *kinds: Vector(WIDE))
def load_rows(builder, source, index, stride, count):
    """Wide vector of rows of LANES items; of rows from `count` on, which is at least 1, zeros."""
    rows = []
    for n in range(SAMPLES):
        exists = builder.icmp_signed(">", count, _LONG(n))
        offset = builder.select(exists, builder.mul(stride, _LONG(n)), _LONG(0))
        row = _to_float(builder, load_ir(builder, builder.gep(source, [builder.add(index, offset)])))
        rows.append(builder.select(exists, row, vector_constant(_FLOAT, 0.0)))
    return concatenate(builder, rows)


@instruction()
def store_rows(builder, target, index, stride, values, count):
    """Write the first `count` rows of a tuple of wide vectors, those of one sample side by side."""
    values = (split(builder, value) for value in cgutils.unpack_tuple(builder, values))
    for n, rows in enumerate(zip(*values, strict=True)):
        with builder.if_then(builder.icmp_signed(">", count, _LONG(n)), likely=True):
            row = _from_float(builder, concatenate(builder, rows), target.type.pointee)
            store_ir(builder, _row_at(builder, builder.gep(target, [index]), stride, n), row)


def _masked(builder, name, base, index, count, *values):
    """Call LLVM's masked load or store for the first `count` lanes, or for all if there are fewer."""
    element = base.type.pointee
    kind, align = ir.VectorType(element, LANES), _INT(2 if element == _SHORT else 4)
    address = builder.bitcast(builder.gep(base, [index]), kind.as_pointer())
    lanes = ir.Constant(ir.VectorType(_LONG, LANES), list(range(LANES)))
    mask = builder.icmp_signed("<", lanes, splat_ir(builder, count))
    if name == "load":
        values, result = [address, align, mask, ir.Constant(kind, None)], kind
    else:
        values, result = [*values, address, align, mask], ir.VoidType()
    name = f"llvm.masked.{name}.v{LANES}{'i16' if element == _SHORT else 'f32'}.p0"
    return call_llvm(builder, name, result, *values)


@instruction(lambda *kinds: Vector(LANES))
def load_some(builder, source, index, count):
    """As `load`, of the first min(count, LANES) items; the other lanes are 0."""
    return _to_float(builder, _masked(builder, "load", source, index, count))


@instruction()
def store_some(builder, target, index, value, count):
    """As `store`, of the vector's first min(count, LANES) lanes."""
    value = _from_float(builder, value, target.type.pointee)
    with builder.if_else(builder.icmp_signed("<", count, _LONG(LANES))) as (some, all_lanes):
        with some:
            _masked(builder, "store", target, index, count, value)
        with all_lanes:  # AVX2's masked stores are slow
            store_ir(builder, builder.gep(target, [index]), value)


@instruction(lambda value: Vector(LANES))
def splat(builder, value):
    """Vector of LANES equal float32."""
    return splat_ir(builder, value)


@instruction(lambda total, value: total)
def add_rows(builder, total, value):
    """Vector of LANES values plus the rows of a wide one."""

    def add(left, right):
        return builder.fadd(left, right, flags=("contract",))

    first, second, third, fourth = split(builder, value)
    return add(add(add(total, first), second), add(third, fourth))


@instruction()
def store_words(builder, out, index, values, first, second):
    """Write LANES words: float32 from an index on, or pairs of the bfloat16 from two indices on."""
    words, others = (load_ir(builder, builder.gep(values, [index])) for index in (first, second))
    if values.type.pointee == _SHORT:
        words = _shuffle(builder, words, others, [k for lane in range(LANES) for k in (lane, LANES + lane)])
    store_ir(builder, builder.gep(out, [index]), words)


@instruction()
def write_transposed(builder, source, stride, target):
    """Write the transpose of a strided LANES by LANES block of 32-bit items, contiguously."""
    rows = [load_ir(builder, _row_at(builder, source, stride, number)) for number in range(LANES)]
    # Rows whose numbers differ in one bit exchange halves, then quarters, and so on.
    for distance in (8, 4, 2, 1):
        low = [lane + (LANES - distance if lane & distance else 0) for lane in range(LANES)]
        high = [lane + (LANES if lane & distance else distance) for lane in range(LANES)]
        for row in range(LANES):
            if not row & distance:
                pair = rows[row], rows[row | distance]
                rows[row], rows[row | distance] = (_shuffle(builder, *pair, lanes) for lanes in (low, high))
    for number, row in enumerate(rows):
        store_ir(builder, _row_at(builder, target, _LONG(LANES), number), row)


@instruction()
def prefetch(builder, source, index, number):
    """Prefetch `number` consecutive items into the nearest cache."""
    byte = ir.IntType(8).as_pointer()
    function = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], function)
    start = builder.bitcast(builder.gep(source, [index]), byte)
    size = builder.mul(number, _LONG(2 if source.type.pointee == _SHORT else 4))
    with cgutils.for_range_slice(builder, _LONG(0), size, _LONG(CACHE_LINE)) as (offset, _):
        # To read, into all levels, data rather than instructions.
        builder.call(function, [builder.gep(start, [offset]), _INT(0), _INT(3), _INT(1)])


@inner
def aligned(number, like):
    """Uninitialized array of the type of `like`, aligned to a cache line.

    A vector that crosses a cache line is read and written twice.
    """
    spare = CACHE_LINE // like.itemsize
    flat = np.empty(number + spare, like.dtype)
    start = -flat.ctypes.data % CACHE_LINE // like.itemsize
    return flat[start : start + number]
