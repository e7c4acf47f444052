"""Sigmoid and tanh on vectors, four at a time, by a power of two and a reciprocal."""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from fastlstm.isa import uses
from fastlstm.jit import inline
from fastlstm.simd import FLOATS, INTS, LANES, broadcast_ir, vector


@intrinsic
def _clamp(typing_context, value, bound):
    """The vector's values between -bound and bound; not a number remains that."""

    def generate(context, builder, signature, arguments):
        value, bound = arguments
        low, high = broadcast_ir(builder, builder.fneg(bound)), broadcast_ir(builder, bound)
        value = builder.select(builder.fcmp_ordered(">", low, value), low, value)
        return builder.select(builder.fcmp_ordered("<", high, value), high, value)

    return vector(vector, types.float32), generate


# Whether the processor scales by any power of two. By an infinite one it yields 0 or infinity, even if the
# value is not a number, as the fraction of an infinity is not.
_SCALES_ANY = uses("avx512")


@intrinsic
def _round(typing_context, value):
    """The nearest integers."""

    def generate(context, builder, signature, arguments):
        function = builder.module.declare_intrinsic(
            f"llvm.rint.v{LANES}f32", (), ir.FunctionType(FLOATS, [FLOATS])
        )
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
                "llvm.x86.avx512.mask.scalef.ps.512",
                (),
                ir.FunctionType(FLOATS, [FLOATS, FLOATS, FLOATS, mask, rounding]),
            )
            # All lanes, rounded as always.
            return builder.call(function, [value, exponents, value, mask(0xFFFF), rounding(4)])
        # Added to 1.5 * 2**23, which leaves no bits for a fraction, they are the sum's lowest bits.
        bits = builder.bitcast(builder.fadd(exponents, ir.Constant(FLOATS, [1.5 * 2**23] * LANES)), INTS)
        bits = builder.add(
            builder.shl(bits, ir.Constant(INTS, [23] * LANES)), ir.Constant(INTS, [127 << 23] * LANES)
        )
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
            "llvm.x86.avx512.rcp14.ps.512", (), ir.FunctionType(FLOATS, [FLOATS, FLOATS, mask])
        )
        return builder.call(function, [arguments[0], ir.Constant(FLOATS, [0.0] * LANES), mask(0xFFFF)])

    return vector(vector), generate


def _interpolation(function, degree, reach):
    """Coefficients of a polynomial near a function between -reach and reach."""
    return np.polynomial.Polynomial.cast(
        np.polynomial.Chebyshev.interpolate(function, degree, (-reach, reach))
    ).coef.astype(np.float32)


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
    return (
        e0 + e0 * (_ONE - b0 * e0),
        e1 + e1 * (_ONE - b1 * e1),
        e2 + e2 * (_ONE - b2 * e2),
        e3 + e3 * (_ONE - b3 * e3),
    )


@inline
def _coarse_sigmoids_of_scaled(y0, y1, y2, y3):
    """The same with an error of up to 1e-4."""
    if not _SCALES_ANY:
        y0, y1, y2, y3 = (
            _clamp(y0, _LARGEST),
            _clamp(y1, _LARGEST),
            _clamp(y2, _LARGEST),
            _clamp(y3, _LARGEST),
        )
    w0, w1, w2, w3 = _round(y0), _round(y1), _round(y2), _round(y3)
    f0, f1, f2, f3 = y0 - w0, y1 - w1, y2 - w2, y3 - w3
    p0, p1, p2, p3 = _Q2 + f0 * _Q3, _Q2 + f1 * _Q3, _Q2 + f2 * _Q3, _Q2 + f3 * _Q3
    p0, p1, p2, p3 = _Q1 + f0 * p0, _Q1 + f1 * p1, _Q1 + f2 * p2, _Q1 + f3 * p3
    p0, p1, p2, p3 = _ONE + f0 * p0, _ONE + f1 * p1, _ONE + f2 * p2, _ONE + f3 * p3
    p0, p1, p2, p3 = _ldexp(p0, w0), _ldexp(p1, w1), _ldexp(p2, w2), _ldexp(p3, w3)
    return (
        _reciprocal_estimate(_ONE + p0),
        _reciprocal_estimate(_ONE + p1),
        _reciprocal_estimate(_ONE + p2),
        _reciprocal_estimate(_ONE + p3),
    )


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
