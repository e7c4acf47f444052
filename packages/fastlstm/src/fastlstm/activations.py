"""Sigmoid and tanh on vectors, by a power of two and a reciprocal.

They are fastest on vectors of four rows: the instructions of one row form a chain, and those of the others
fill the time in between.
"""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from fastlstm.isa import uses
from fastlstm.jit import inline
from fastlstm.simd import call_by_lanes, splat_ir, vector_constant

_FLOAT, _INT, _MASK = ir.FloatType(), ir.IntType(32), ir.IntType(16)
# Whether the processor scales by any power of two. By an infinite one it yields 0 or infinity, even if the
# value is not a number, as the fraction of an infinity is not.
_SCALES_ANY = uses("avx512")


@intrinsic
def _clamp(typing_context, value, bound):
    """Values between -bound and bound; NaN remains NaN."""

    def generate(context, builder, signature, arguments):
        value, bound = arguments
        lanes = value.type.count
        low, high = (splat_ir(builder, builder.fneg(bound), lanes), splat_ir(builder, bound, lanes))
        value = builder.select(builder.fcmp_ordered(">", low, value), low, value)
        return builder.select(builder.fcmp_ordered("<", high, value), high, value)

    return value(value, types.float32), generate


@intrinsic
def _round(typing_context, value):
    """The nearest integers."""

    def generate(context, builder, signature, arguments):
        kind = arguments[0].type
        function = builder.module.declare_intrinsic(
            f"llvm.rint.v{kind.count}f32", (), ir.FunctionType(kind, [kind])
        )
        return builder.call(function, arguments)

    return value(value), generate


@intrinsic
def _ldexp(typing_context, value, exponents):
    """value * 2**exponents for integers; between -126 and 126 unless `_SCALES_ANY`."""

    def generate(context, builder, signature, arguments):
        value, exponents = arguments
        lanes = value.type.count
        if _SCALES_ANY:
            # All lanes, rounded as always.
            others = exponents, value, _MASK(0xFFFF), _INT(4)
            return call_by_lanes(builder, "llvm.x86.avx512.mask.scalef.ps.512", value, *others)
        # Added to 1.5 * 2**23, which leaves no bits for a fraction, they are the sum's lowest bits.
        bits = builder.fadd(exponents, vector_constant(_FLOAT, 1.5 * 2**23, lanes))
        bits = builder.bitcast(bits, ir.VectorType(_INT, lanes))
        bits = builder.add(
            builder.shl(bits, vector_constant(_INT, 23, lanes)), vector_constant(_INT, 127 << 23, lanes)
        )
        return builder.fmul(value, builder.bitcast(bits, value.type))

    return value(value, exponents), generate


@intrinsic
def _reciprocal_estimate(typing_context, value):
    """1 / value: to 14 bits where the processor has an instruction for that, else exactly."""

    def generate(context, builder, signature, arguments):
        value = arguments[0]
        if not uses("avx512"):
            return builder.fdiv(vector_constant(_FLOAT, 1.0, value.type.count), value)
        zeros = vector_constant(_FLOAT, 0.0, value.type.count)
        return call_by_lanes(builder, "llvm.x86.avx512.rcp14.ps.512", value, zeros, _MASK(0xFFFF))

    return value(value), generate


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


@inline
def _exact_sigmoid(y):
    y = _clamp(y, _LARGEST)  # no infinity for Newton's method
    whole = _round(y)
    f = y - whole
    power = _P0 + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * _P5))))
    denominator = _ONE + _ldexp(power, whole)
    estimate = _reciprocal_estimate(denominator)
    # A step of Newton's method doubles the number of bits.
    return estimate + estimate * (_ONE - denominator * estimate)


@inline
def _coarse_sigmoid(y):
    if not _SCALES_ANY:
        y = _clamp(y, _LARGEST)
    whole = _round(y)
    f = y - whole
    power = _ONE + f * (_Q1 + f * (_Q2 + f * _Q3))
    return _reciprocal_estimate(_ONE + _ldexp(power, whole))


def sigmoid_of_scaled(y, like):
    """1 / (1 + 2**y), for arrays of the type of `like`: with an error of up to 1e-4 for bfloat16."""


@overload(sigmoid_of_scaled, inline="always")
def _sigmoid_of_scaled(y, like):
    if like.dtype == types.uint16:
        return lambda y, like: _coarse_sigmoid(y)
    return lambda y, like: _exact_sigmoid(y)


# sigmoid(x) is 1 / (1 + 2**(x * SIGMOID)), tanh(x) is 2 / (1 + 2**(x * TANH)) - 1.
SIGMOID, TANH = np.float32(-np.log2(np.e)), np.float32(-2 * np.log2(np.e))


@inline
def tanh(x, like):
    """The hyperbolic tangent, as exact as `sigmoid_of_scaled`."""
    return _TWO * sigmoid_of_scaled(x * TANH, like) - _ONE
