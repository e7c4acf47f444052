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
from numba.extending import intrinsic, lower_builtin, overload, register_model, type_callable

from pipeline.bilstm.isa import uses
from pipeline.bilstm.jit import compiled, inline

LANES = 16

FLOATS = ir.VectorType(ir.FloatType(), LANES)
INTS = ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
_CACHE_LINE = 64  # bytes


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
        left, right = (value if kind == vector else broadcast_ir(builder, value)
                       for kind, value in zip(signature.args, arguments))
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
    indices = [context.cast(builder, index, of, types.intp) for of, index in
               zip(kinds[1], cgutils.unpack_tuple(builder, arguments[1]))]
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
    """Masks of the first `count` lanes, in LLVM; all of them if there are not so few."""
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
            f"{name}.p0", (), ir.FunctionType(kind, [address.type, ir.IntType(32), mask.type, kind]))
        value = builder.call(function, [address, ir.IntType(32)(2 if in_shorts else 4), mask,
                                        ir.Constant(kind, None)])
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
        function = builder.module.declare_intrinsic(f"{name}.p0", (), ir.FunctionType(
            ir.VoidType(), [value.type, address.type, ir.IntType(32), mask.type]))
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
                "llvm.x86.avx512bf16.cvtneps2bf16.512", (), ir.FunctionType(halves, [FLOATS]))
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
                "llvm.x86.avx512bf16.cvtne2ps2bf16.512", (), ir.FunctionType(pair, [FLOATS, FLOATS]))
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
def copy(typing_context, array, indices, to, places):
    """LANES values from one array to another, of the same type."""
    def generate(context, builder, signature, arguments):
        dtype = signature.args[0].dtype
        kind = ir.VectorType(context.get_value_type(dtype), LANES)
        source, target = (builder.bitcast(item(context, builder, signature.args[n:], arguments[n:]),
                                          kind.as_pointer()) for n in (0, 2))
        value = builder.load(source)
        value.align = dtype.bitwidth // 8
        builder.store(value, target).align = dtype.bitwidth // 8
        return context.get_dummy_value()
    return types.void(array, indices, to, places), generate


@intrinsic
def write_transposed(typing_context, source, source_row, target, target_row):
    """Write the transpose of LANES by LANES items of 32 bits.

    Args:
        source, target: pointers to the first items; source_row, target_row: items from one row to the next.
    """
    def generate(context, builder, signature, arguments):
        def row_addresses(base, row):
            return [builder.bitcast(builder.gep(base, [builder.mul(row, row.type(number))]), INTS.as_pointer())
                    for number in range(LANES)]

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
                        builder.shuffle_vector(*pair, ir.Constant(INTS, lanes)) for lanes in (low, high))
        for address, row in zip(row_addresses(target, target_row), rows):
            builder.store(row, address).align = 4
        return context.get_dummy_value()
    return types.void(source, types.int64, target, types.int64), generate


@intrinsic
def prefetch(typing_context, array, indices, number):
    """Start to fetch so many values of an array's last dimension into the nearest cache, from an item on."""
    def generate(context, builder, signature, arguments):
        byte, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, int32, int32, int32]))
        start = builder.bitcast(item(context, builder, signature.args, arguments), byte)
        number = context.cast(builder, arguments[2], signature.args[2], types.intp)
        size = builder.mul(number, number.type(signature.args[0].dtype.bitwidth // 8))
        with cgutils.for_range_slice(builder, size.type(0), size, size.type(_CACHE_LINE)) as (offset, _):
            # To read, into all levels, data rather than instructions.
            builder.call(function, [builder.gep(start, [offset]), int32(0), int32(3), int32(1)])
        return context.get_dummy_value()
    return types.void(array, indices, number), generate


@compiled
def aligned(number, like):
    """An empty array of another's type that begins at the start of a cache line.

    Vectors that lie across two lines are read and written twice.
    """
    spare = _CACHE_LINE // like.itemsize
    flat = np.empty(number + spare, like.dtype)
    start = -flat.ctypes.data % _CACHE_LINE // like.itemsize
    return flat[start:start + number]


@intrinsic
def broadcast(typing_context, value):
    """A vector of one float32."""
    def generate(context, builder, signature, arguments):
        return broadcast_ir(builder, arguments[0])
    return vector(types.float32), generate


@intrinsic
def _clamp(typing_context, value, bound):
    """The vector's values between -bound and bound; not a number remains that."""
    def generate(context, builder, signature, arguments):
        value, bound = arguments
        low, high = broadcast_ir(builder, builder.fneg(bound)), broadcast_ir(builder, bound)
        value = builder.select(builder.fcmp_ordered(">", low, value), low, value)
        return builder.select(builder.fcmp_ordered("<", high, value), high, value)
    return vector(vector, types.float32), generate


# Whether the processor scales by any power of two, infinities included: of which it makes 0 and infinity even
# where the value is not a number, as the fraction of an infinity is not.
_SCALES_ANY = uses("avx512")


@intrinsic
def _round(typing_context, value):
    """The nearest integers."""
    def generate(context, builder, signature, arguments):
        function = builder.module.declare_intrinsic(
            f"llvm.rint.v{LANES}f32", (), ir.FunctionType(FLOATS, [FLOATS]))
        return builder.call(function, arguments)
    return vector(vector), generate


@intrinsic
def _ldexp(typing_context, value, exponents):
    """value * 2**exponents, these being integers; between -126 and 126 unless `_SCALES_ANY`."""
    def generate(context, builder, signature, arguments):
        value, exponents = arguments
        if _SCALES_ANY:
            mask, rounding = ir.IntType(16), ir.IntType(32)
            function = builder.module.declare_intrinsic(
                "llvm.x86.avx512.mask.scalef.ps.512", (),
                ir.FunctionType(FLOATS, [FLOATS, FLOATS, FLOATS, mask, rounding]))
            # All lanes, rounded as always.
            return builder.call(function, [value, exponents, value, mask(0xFFFF), rounding(4)])
        # Added to 1.5 * 2**23, which leaves no bits for a fraction, they are the sum's lowest bits.
        bits = builder.bitcast(builder.fadd(exponents, ir.Constant(FLOATS, [1.5 * 2**23] * LANES)), INTS)
        bits = builder.add(builder.shl(bits, ir.Constant(INTS, [23] * LANES)),
                           ir.Constant(INTS, [127 << 23] * LANES))
        return builder.fmul(value, builder.bitcast(bits, FLOATS))
    return vector(vector, vector), generate


@intrinsic
def _reciprocal_estimate(typing_context, value):
    """1 / value: to 14 bits where the processor can do that, else exactly."""
    def generate(context, builder, signature, arguments):
        if not uses("avx512"):
            return builder.fdiv(ir.Constant(FLOATS, [1.0] * LANES), arguments[0])
        mask = ir.IntType(16)
        function = builder.module.declare_intrinsic(
            "llvm.x86.avx512.rcp14.ps.512", (), ir.FunctionType(FLOATS, [FLOATS, FLOATS, mask]))
        return builder.call(function, [arguments[0], ir.Constant(FLOATS, [0.0] * LANES), mask(0xFFFF)])
    return vector(vector), generate


def _interpolation(function, degree, reach):
    """Coefficients of a polynomial near a function between -reach and reach."""
    return np.polynomial.Polynomial.cast(np.polynomial.Chebyshev.interpolate(
        function, degree, (-reach, reach))).coef.astype(np.float32)


# For f in [-1/2, 1/2]: of 2**f, to 1e-7; near enough to 1 at 0 for 1 + 2**0 to be 2.
_P0, _P1, _P2, _P3, _P4, _P5 = _interpolation(np.exp2, 5, 0.5)
# Of (2**f - 1) / f, so that 2**0 is 1 and tanh(0) is 0. Reaching further makes the error of 2**f, 1e-4, about
# the same at both ends and between.
_Q1, _Q2, _Q3 = _interpolation(lambda f: np.expm1((f + 1e-9) * np.log(2)) / (f + 1e-9), 2, 0.5255)
_LARGEST = np.float32(126)  # exponent of a normal float32
_ONE, _TWO = np.float32(1), np.float32(2)


# Both functions take four vectors, whose instructions alternate: a single one's form a chain, and the
# processor looks ahead too few of them to find another chain to work on.


@inline
def _sigmoids_of_scaled(y0, y1, y2, y3):
    """1 / (1 + 2**y) of each."""
    # No infinity for Newton's method.
    y0, y1, y2, y3 = _clamp(y0, _LARGEST), _clamp(y1, _LARGEST), _clamp(y2, _LARGEST), _clamp(y3, _LARGEST)
    w0, w1, w2, w3 = _round(y0), _round(y1), _round(y2), _round(y3)
    f0, f1, f2, f3 = y0 - w0, y1 - w1, y2 - w2, y3 - w3
    p0, p1, p2, p3 = _P4 + f0 * _P5, _P4 + f1 * _P5, _P4 + f2 * _P5, _P4 + f3 * _P5
    p0, p1, p2, p3 = _P3 + f0 * p0, _P3 + f1 * p1, _P3 + f2 * p2, _P3 + f3 * p3
    p0, p1, p2, p3 = _P2 + f0 * p0, _P2 + f1 * p1, _P2 + f2 * p2, _P2 + f3 * p3
    p0, p1, p2, p3 = _P1 + f0 * p0, _P1 + f1 * p1, _P1 + f2 * p2, _P1 + f3 * p3
    p0, p1, p2, p3 = _P0 + f0 * p0, _P0 + f1 * p1, _P0 + f2 * p2, _P0 + f3 * p3
    p0, p1, p2, p3 = _ldexp(p0, w0), _ldexp(p1, w1), _ldexp(p2, w2), _ldexp(p3, w3)
    b0, b1, b2, b3 = _ONE + p0, _ONE + p1, _ONE + p2, _ONE + p3
    e0, e1 = _reciprocal_estimate(b0), _reciprocal_estimate(b1)
    e2, e3 = _reciprocal_estimate(b2), _reciprocal_estimate(b3)
    # A step of it doubles the number of bits.
    return (e0 + e0 * (_ONE - b0 * e0), e1 + e1 * (_ONE - b1 * e1),
            e2 + e2 * (_ONE - b2 * e2), e3 + e3 * (_ONE - b3 * e3))


@inline
def _coarse_sigmoids_of_scaled(y0, y1, y2, y3):
    """The same with an error of up to 1e-4."""
    if not _SCALES_ANY:
        y0, y1, y2, y3 = _clamp(y0, _LARGEST), _clamp(y1, _LARGEST), _clamp(y2, _LARGEST), _clamp(y3, _LARGEST)
    w0, w1, w2, w3 = _round(y0), _round(y1), _round(y2), _round(y3)
    f0, f1, f2, f3 = y0 - w0, y1 - w1, y2 - w2, y3 - w3
    p0, p1, p2, p3 = _Q2 + f0 * _Q3, _Q2 + f1 * _Q3, _Q2 + f2 * _Q3, _Q2 + f3 * _Q3
    p0, p1, p2, p3 = _Q1 + f0 * p0, _Q1 + f1 * p1, _Q1 + f2 * p2, _Q1 + f3 * p3
    p0, p1, p2, p3 = _ONE + f0 * p0, _ONE + f1 * p1, _ONE + f2 * p2, _ONE + f3 * p3
    p0, p1, p2, p3 = _ldexp(p0, w0), _ldexp(p1, w1), _ldexp(p2, w2), _ldexp(p3, w3)
    return (_reciprocal_estimate(_ONE + p0), _reciprocal_estimate(_ONE + p1),
            _reciprocal_estimate(_ONE + p2), _reciprocal_estimate(_ONE + p3))


def sigmoids(y0, y1, y2, y3, like):
    """1 / (1 + 2**y) of each, for arrays of the type of `like`: with an error of up to 1e-4 for bfloat16."""


@overload(sigmoids, inline="always")
def _sigmoids_like(y0, y1, y2, y3, like):
    if like.dtype == types.uint16:
        return lambda y0, y1, y2, y3, like: _coarse_sigmoids_of_scaled(y0, y1, y2, y3)
    return lambda y0, y1, y2, y3, like: _sigmoids_of_scaled(y0, y1, y2, y3)


# sigmoid(x) is 1 / (1 + 2**(x * SIGMOID)), tanh(x) is 2 / (1 + 2**(x * TANH)) - 1.
SIGMOID, TANH = np.float32(-np.log2(np.e)), np.float32(-2 * np.log2(np.e))


@inline
def tanhs(x0, x1, x2, x3, like):
    """The hyperbolic tangent of each, as exact as `sigmoids`."""
    s0, s1, s2, s3 = sigmoids(x0 * TANH, x1 * TANH, x2 * TANH, x3 * TANH, like)
    return _TWO * s0 - _ONE, _TWO * s1 - _ONE, _TWO * s2 - _ONE, _TWO * s3 - _ONE
