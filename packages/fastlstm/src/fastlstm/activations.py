"""Sigmoid and tanh on vectors, by a power of two and a reciprocal.

They are fastest on wide vectors: one row is a chain of dependent instructions, and those of the other rows
hide its latency.
"""

import numpy as np
from llvmlite import ir
from numba.core import types

from fastlstm.isa import uses
from fastlstm.jit import constant, inline
from fastlstm.simd import call_llvm, concatenate, instruction, split, vector_constant

_FLOAT, _INT, _MASK = ir.FloatType(), ir.IntType(32), ir.IntType(16)
_LARGEST = np.float32(126)  # exponent of a normal float32
# Whether the processor scales by any power of two. By an infinite one it yields 0 or infinity, even if the
# value is not a number, as the fraction of an infinity is not.
_SCALES_ANY = uses("avx512")


def _call_by_lanes(builder, name, values, *others):
    """Call an LLVM function of vectors of LANES float32, and of other values, for each part of the values."""
    results = []
    for parts in zip(*(split(builder, value) for value in values), strict=True):
        results.append(call_llvm(builder, name, parts[0].type, *parts, *others))
    return concatenate(builder, results)


@instruction(lambda value: value)
def _clamp(builder, value):
    """Values between -_LARGEST and _LARGEST; NaN remains NaN."""
    low, high = (vector_constant(_FLOAT, float(bound), value.type.count) for bound in (-_LARGEST, _LARGEST))
    value = builder.select(builder.fcmp_ordered(">", low, value), low, value)
    return builder.select(builder.fcmp_ordered("<", high, value), high, value)


@instruction(lambda value: value)
def _round(builder, value):
    """The nearest integers."""
    return call_llvm(builder, f"llvm.rint.v{value.type.count}f32", value.type, value)


@instruction(lambda value, exponents: value)
def _ldexp(builder, value, exponents):
    """value * 2**exponents for integers; between -126 and 126 unless `_SCALES_ANY`."""
    lanes = value.type.count
    if _SCALES_ANY:
        # All lanes, rounded as always.
        others = vector_constant(_FLOAT, 0.0), _MASK(0xFFFF), _INT(4)
        return _call_by_lanes(builder, "llvm.x86.avx512.mask.scalef.ps.512", (value, exponents), *others)
    # Added to 1.5 * 2**23, which leaves no bits for a fraction, they are the sum's lowest bits.
    bits = builder.fadd(exponents, vector_constant(_FLOAT, 1.5 * 2**23, lanes))
    bits = builder.shl(builder.bitcast(bits, ir.VectorType(_INT, lanes)), vector_constant(_INT, 23, lanes))
    bits = builder.add(bits, vector_constant(_INT, 127 << 23, lanes))
    return builder.fmul(value, builder.bitcast(bits, value.type))


@instruction(lambda value: value)
def _reciprocal_estimate(builder, value):
    """1 / value: to 14 bits where the processor has an instruction for that, else exactly."""
    if not uses("avx512"):
        return builder.fdiv(vector_constant(_FLOAT, 1.0, value.type.count), value)
    zeros = vector_constant(_FLOAT, 0.0)
    return _call_by_lanes(builder, "llvm.x86.avx512.rcp14.ps.512", (value,), zeros, _MASK(0xFFFF))


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
_ONE, _TWO = np.float32(1), np.float32(2)
# sigmoid(x) is 1 / (1 + 2**(x * _SIGMOID)), tanh(x) is 2 / (1 + 2**(x * _TANH)) - 1.
_SIGMOID, _TANH = np.float32(-np.log2(np.e)), np.float32(-2 * np.log2(np.e))


@constant
def _is_exact(dtype):
    return dtype == types.float32


@inline
def _sigmoid_of_scaled(y, like):
    """1 / (1 + 2**y)."""
    exact = _is_exact(like)
    if exact or not _SCALES_ANY:
        y = _clamp(y)  # no infinity for Newton's method
    whole = _round(y)
    f = y - whole
    if exact:
        power = _P0 + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * _P5))))
    else:
        power = _ONE + f * (_Q1 + f * (_Q2 + f * _Q3))
    denominator = _ONE + _ldexp(power, whole)
    result = _reciprocal_estimate(denominator)
    if exact:
        # A step of Newton's method doubles the number of bits.
        result = result + result * (_ONE - denominator * result)
    return result


@inline
def sigmoid(x, like):
    """The logistic function, for arrays of the type of `like`: with an error of up to 1e-4 for bfloat16."""
    return _sigmoid_of_scaled(x * _SIGMOID, like)


@inline
def tanh(x, like):
    """The hyperbolic tangent, as exact as `sigmoid`."""
    return _TWO * _sigmoid_of_scaled(x * _TANH, like) - _ONE
