"""One step of a bidirectional LSTM, all but its matrix products, compiled by Numba: one pass over memory.

The equations are those of Keras's LSTM (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et
al. 2000), the gradient is their chain rule:

    z = x @ kernel + bias + h_before @ recurrent
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);  g = tanh(z_g)
    c = f * c_before + i * g;  h = o * tanh(c)

`kernels.py` makes TensorFlow operations of the two functions, `bilstm.py` strings them together.
"""

import hashlib
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

# Keras's LSTM orders its gates: input, forget, candidate, output.
GATES = 4
# What a layer returns of the states h: each, their mean, or the one that each direction ends with.
SEQUENCE, MEAN, END = range(3)


def _folder():
    """Where Numba keeps what it compiles of this file and of `kernels.py`: a folder named by their content.

    Numba itself asks only whether the file of a function has changed, but what `kernels.py` compiles to holds
    this file's code; and processes that start after a change must not meet in a folder of old code.
    """
    here = Path(__file__)
    content = here.read_bytes() + here.with_name("kernels.py").read_bytes()
    name = f"numba_{hashlib.sha256(content).hexdigest()[:8]}"
    for base in (numba.config.CACHE_DIR, here.with_name("__pycache__"), Path.home() / ".cache/numba"):
        if base:
            try:
                Path(base, name).mkdir(parents=True, exist_ok=True)
                return str(Path(base, name))
            except OSError:
                continue
    return numba.config.CACHE_DIR


_FOLDER = _folder()


def kept(decorator):
    """A decorator of Numba, its results kept in that folder."""
    def decorate(function):
        # Numba looks at the setting when it decorates; it is everybody's, and so put back.
        others, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _FOLDER
        try:
            return decorator(function)
        finally:
            numba.config.CACHE_DIR = others
    return decorate


compiled = kept(numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"}))
_inlined = numba.njit(inline="always")


def _bitcast(to):
    @intrinsic
    def cast(typing_context, value):
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(to))
        return to(value), generate
    return cast


_float_of_bits, _bits_of_float = _bitcast(types.float32), _bitcast(types.uint32)


def _load(value):
    """As float32. Numba has no bfloat16: such arrays come as their bits, uint16."""


@overload(_load, inline="always")
def _load_any(value):
    if value == types.uint16:
        return lambda value: _float_of_bits(np.uint32(np.uint32(value) << np.uint32(16)))
    return lambda value: value


def _store(array, k, value):
    """A float32, in the array's type; to bfloat16 rounded to nearest, ties to even."""


@overload(_store, inline="always")
def _store_any(array, k, value):
    if array.dtype == types.uint16:
        def store(array, k, value):
            bits = _bits_of_float(value)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            array[k] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    else:
        def store(array, k, value):
            array[k] = value
    return store


# 2**f for f in [-1/2, 1/2], to 1e-7.
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = np.polynomial.Polynomial.cast(
    np.polynomial.Chebyshev.interpolate(lambda f: 2.0**f, 6, (-0.5, 0.5))).coef.astype(np.float32)
_LOG2_E = np.float32(np.log2(np.e))
_LARGEST = np.float32(126)  # exponent of a normal float32
# Adding it leaves no bits for a fraction: the sum's lowest bits are the rounded integer.
_ROUNDER = np.float32(1.5 * 2**23)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


@_inlined
def _sigmoid(x):
    """1 / (1 + exp(-x)), of operations that the processor does for many values at once."""
    y = min(max(-x * _LOG2_E, -_LARGEST), _LARGEST)
    rounded = y + _ROUNDER
    f = y - (rounded - _ROUNDER)
    power = _P0 + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * (_P5 + f * _P6)))))
    scale = _float_of_bits(np.uint32((_bits_of_float(rounded) << np.uint32(23)) + np.uint32(127 << 23)))
    return _ONE / (_ONE + scale * power)


@_inlined
def _tanh(x):
    return _TWO * _sigmoid(_TWO * x) - _ONE


# The rows of two samples in the same step lie further apart than the processor's own prefetching looks;
# asked for so many samples before they are needed, they come twice as fast.
_AHEAD = 2
_CACHE_LINE = 64  # bytes


@intrinsic
def _prefetch(typing_context, row):
    """Start to fetch all of a contiguous one-dimensional array into the nearest cache."""
    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, number, number, number]))
        start, size = builder.bitcast(array.data, byte), builder.mul(array.nitems, array.itemsize)
        with cgutils.for_range_slice(builder, size.type(0), size, size.type(_CACHE_LINE)) as (offset, _):
            # To read, into all levels, data rather than instructions.
            builder.call(prefetch, [builder.gep(start, [offset]), number(0), number(3), number(1)])
        return context.get_dummy_value()
    return types.void(row), generate


# The inner loops are many and small so that each has few arrays: with more, the compiler gives up
# proving that they do not overlap, and does one value at a time.


@compiled
def forward_step(step, returns, keep, gates, z, bias, c_before, c, h, before, mask, y):
    """A step of the forward direction, or of both.

    Args:
        step: number of the step, in the order of computation.
        returns: `SEQUENCE`, `MEAN` or `END`: what of h to write into y.
        keep: whether `gates` and `before` are to be written, which only the gradient needs.
        gates: `(2, batch, steps, 4 * units)`, forward then backward, steps in the input's order: the
            input's projections, which this step replaces by its gates.
        z: the state's projections `(directions, batch, 4 * units)`; bias: `(2, 4 * units)`.
        c_before, c: cell states `(2, batch, units)`; c is written, and may be the same array.
        h: `(2, batch, units)`, states before the step, replaced by those after it.
        before: `(2, batch, steps, units)`: gets h as it was before the step.
        mask: `(batch, time)`, 1 within a sample and 0 past its end, or `(0, time)` for none.
        y: `(batch, time, 2 * units)` for `SEQUENCE`, else `(batch, 1, 2 * units)`; before the first
            step all zero.
    """
    directions, batch, _ = z.shape
    time, steps, units = mask.shape[1], gates.shape[2], c.shape[2]
    gate = np.empty(GATES * units, np.float32)
    i, f, g, o = gate[:units], gate[units:2 * units], gate[2 * units:3 * units], gate[3 * units:]
    out = np.empty(units, np.float32)
    share = _ONE / np.float32(steps)
    for d in range(directions):
        slot, t = (step, step) if d == 0 else (steps - 1 - step, time - 1 - step)
        y_slot, own = t if returns == SEQUENCE else 0, slice(d * units, (d + 1) * units)
        bias_d = bias[d]
        for b in range(batch):
            ahead = min(b + _AHEAD, batch - 1)
            _prefetch(gates[d, ahead, slot])
            _prefetch(y[ahead, y_slot, own])
            gates_b, z_b, h_b = gates[d, b, slot], z[d, b], h[d, b]
            c_before_b, c_b, y_b = c_before[d, b], c[d, b], y[b, y_slot, own]
            if keep:
                _prefetch(before[d, ahead, slot])
                before_b = before[d, b, slot]
                for k in range(units):
                    before_b[k] = h_b[k]
            if len(mask) > 0 and mask[b, t] == 0:
                for k in range(units):
                    c_b[k] = c_before_b[k]
                if returns == END:
                    for k in range(units):
                        y_b[k] = _load(h_b[k])
                continue
            for k in range(GATES * units):
                gate[k] = _load(gates_b[k]) + _load(z_b[k]) + bias_d[k]
            for k in range(2 * units):
                gate[k] = _sigmoid(gate[k])
            for k in range(units):
                g[k] = _tanh(g[k])
            for k in range(units):
                o[k] = _sigmoid(o[k])
            if keep:
                for k in range(GATES * units):
                    _store(gates_b, k, gate[k])
            # By way of `out`: the compiler sees that it overlaps with nothing, which c_b and c_before_b may.
            for k in range(units):
                out[k] = f[k] * c_before_b[k] + i[k] * g[k]
            for k in range(units):
                c_b[k] = out[k]
            for k in range(units):
                out[k] = o[k] * _tanh(out[k])
            for k in range(units):
                _store(h_b, k, out[k])
            if returns == MEAN:
                for k in range(units):
                    y_b[k] += out[k] * share
            else:
                for k in range(units):
                    y_b[k] = out[k]


@compiled
def backward_step(step, last, returns, gates, c_before, c, mask, d_y, d_h, d_c, passed, d_bias, d_z):
    """The gradient of `forward_step`; "d_" is the loss's derivative.

    Args:
        last: for each direction whether this is its last step, the one that `END` returns.
        gates: this step's are replaced by d_z.
        d_y: of y; d_h: `(0, 1 or 2, batch, units)`, what came through the next step's matrix product.
        d_c: `(2, batch, units)`, of the cell states after the step, replaced by of those before it.
        passed: `(2, len(mask), units)`: what of d_h came past a sample's end, around the products.
        d_bias: `(2, 4 * units)`, this step's is added.
        d_z: `(directions, batch, 4 * units)`, written.
    """
    directions, batch, _ = d_z.shape
    time, steps, units = mask.shape[1], gates.shape[2], c.shape[2]
    gate = np.empty(GATES * units, np.float32)
    i, f, g, o = gate[:units], gate[units:2 * units], gate[2 * units:3 * units], gate[3 * units:]
    tanh_c, d_out = np.empty(units, np.float32), np.empty(units, np.float32)
    share = _ONE / np.float32(steps)
    for d in range(directions):
        slot, t = (step, step) if d == 0 else (steps - 1 - step, time - 1 - step)
        y_slot, own = t if returns == SEQUENCE else 0, slice(d * units, (d + 1) * units)
        d_bias_d = d_bias[d]
        for b in range(batch):
            ahead = min(b + _AHEAD, batch - 1)
            _prefetch(gates[d, ahead, slot])
            _prefetch(d_y[ahead, y_slot, own])
            gates_b, d_z_b = gates[d, b, slot], d_z[d, b]
            c_before_b, c_b, d_c_b = c_before[d, b], c[d, b], d_c[d, b]
            d_y_b = d_y[b, y_slot, own]
            beyond = len(mask) > 0 and mask[b, t] == 0
            if d < len(d_h):
                d_h_b = d_h[d, b]
                for k in range(units):
                    d_out[k] = _load(d_h_b[k])
            else:
                for k in range(units):
                    d_out[k] = _ZERO
            if returns == MEAN:
                for k in range(units):
                    d_out[k] += d_y_b[k] * share
            elif last[d] if returns == END else not beyond:
                for k in range(units):
                    d_out[k] += d_y_b[k]
            if len(mask) > 0:
                passed_b = passed[d, b]
                for k in range(units):
                    d_out[k] += passed_b[k]
                    passed_b[k] = d_out[k] if beyond else _ZERO
            if beyond:
                for k in range(GATES * units):
                    _store(d_z_b, k, _ZERO)
                    _store(gates_b, k, _ZERO)
                continue
            for k in range(GATES * units):
                gate[k] = _load(gates_b[k])
            for k in range(units):
                tanh_c[k] = _tanh(c_b[k])
            for k in range(units):
                d_c_b[k] += d_out[k] * o[k] * (_ONE - tanh_c[k] * tanh_c[k])
            for k in range(units):
                o[k] = d_out[k] * tanh_c[k] * o[k] * (_ONE - o[k])
            for k in range(units):
                d_i = d_c_b[k] * g[k] * i[k] * (_ONE - i[k])
                g[k] = d_c_b[k] * i[k] * (_ONE - g[k] * g[k])
                i[k] = d_i
            for k in range(units):
                d_f = d_c_b[k] * c_before_b[k] * f[k] * (_ONE - f[k])
                d_c_b[k] *= f[k]
                f[k] = d_f
            for k in range(GATES * units):
                d_bias_d[k] += gate[k]
            for k in range(GATES * units):
                _store(d_z_b, k, gate[k])
            for k in range(GATES * units):
                gates_b[k] = d_z_b[k]
