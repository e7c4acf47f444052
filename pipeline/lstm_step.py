"""The steps of a bidirectional LSTM, compiled by Numba: a few samples at a time, which stay in the caches.

The equations are those of Keras's LSTM (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et
al. 2000), the gradient is their chain rule:

    z = x @ kernel + bias + h_before @ recurrent
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);  g = tanh(z_g)
    c = f * c_before + i * g;  h = o * tanh(c)

`kernels.py` makes TensorFlow operations of the two functions, `bilstm.py` strings them together.
"""

import numpy as np

from pipeline.compiled import AHEAD, bits_of_float, compiled, float_of_bits, inlined, load, prefetch, store
from pipeline.products import ROWS, multiply, padded, units_of

# Keras's LSTM orders its gates: input, forget, candidate, output.
GATES = 4
# What a layer returns of the states h: each, their mean, or the one that each direction ends with.
SEQUENCE, MEAN, END = range(3)

# 2**f for f in [-1/2, 1/2], to 1e-7.
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = np.polynomial.Polynomial.cast(
    np.polynomial.Chebyshev.interpolate(lambda f: 2.0**f, 6, (-0.5, 0.5))).coef.astype(np.float32)
_LOG2_E = np.float32(np.log2(np.e))
_LARGEST = np.float32(126)  # exponent of a normal float32
# Adding it leaves no bits for a fraction: the sum's lowest bits are the rounded integer.
_ROUNDER = np.float32(1.5 * 2**23)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


@inlined
def _sigmoid(x):
    """1 / (1 + exp(-x)), of operations that the processor does for many values at once."""
    y = min(max(-x * _LOG2_E, -_LARGEST), _LARGEST)
    rounded = y + _ROUNDER
    f = y - (rounded - _ROUNDER)
    power = _P0 + f * (_P1 + f * (_P2 + f * (_P3 + f * (_P4 + f * (_P5 + f * _P6)))))
    scale = float_of_bits(np.uint32((bits_of_float(rounded) << np.uint32(23)) + np.uint32(127 << 23)))
    return _ONE / (_ONE + scale * power)


@inlined
def _tanh(x):
    return _TWO * _sigmoid(_TWO * x) - _ONE


# Samples that take their steps together.
_BLOCK = 2 * ROWS

# The inner loops are many and small so that each has few arrays: with more, the compiler gives up
# proving that they do not overlap, and does one value at a time.


@compiled
def forward(first, end, steps, returns, keep, from_zero, x, kernels, recurrents, gates, z, bias, states, h,
            before, mask, y):
    """Steps of both directions.

    The matrix products of a step are either done here, with packed weights, or were done before: then
    `kernels` has the length 0, there is one step only, `gates` holds the inputs' products and z the states'.

    Args:
        first: number of the first step, in the order of computation; end: for each direction, that after the
            last; steps: all that there are.
        returns: `SEQUENCE`, `MEAN` or `END`: what of h to write into y.
        keep: whether `gates`, `before` and all of `states` are to be written, which only the gradient needs.
        from_zero: whether h is zero before step 0, and its product left out.
        x: inputs `(batch, time, features)`; kernels, recurrents: packed weights of each direction.
        gates: `(2, batch, steps, 4 * units)`, forward then backward, steps in the input's order: is filled
            with the steps' gates.
        z: `(1 or 2, batch, 4 * units)`, or `(0, ...)` for zeros; bias: `(2, 4 * units)`.
        states: cell states `(steps + 1, 2, batch, units)` before and after each step; without `keep`
            `(1, 2, batch, units)`, replaced in every step.
        h: `(2, batch, units)`, states before the steps, replaced by those after them.
        before: `(2, batch, steps, units)`: gets h as it was before each step.
        mask: `(batch, time)`, 1 within a sample and 0 past its end, or `(0, time)` for none.
        y: `(batch, time, 2 * units)` for `SEQUENCE`, else `(batch, 1, 2 * units)`; before the first
            step all zero.
    """
    _, batch, units = h.shape
    time = mask.shape[1]
    projected = len(kernels) == 0
    rows_z = np.empty((_BLOCK, padded(GATES * units)), np.float32)
    rows_z[:] = 0
    out = np.empty(units, np.float32)
    share = _ONE / np.float32(steps)
    for d in range(2):
        own, bias_d = slice(d * units, (d + 1) * units), bias[d]
        for start in range(0, batch, _BLOCK):
            stop = min(start + _BLOCK, batch)
            for step in range(first, end[d]):
                slot, t = (step, step) if d == 0 else (steps - 1 - step, time - 1 - step)
                y_slot = t if returns == SEQUENCE else 0
                c_before, c = (states[step, d], states[step + 1, d]) if keep else (states[0, d], states[0, d])
                for b in range(start, stop):
                    gate = rows_z[b - start]
                    for k in range(GATES * units):
                        gate[k] = bias_d[k]
                if projected:
                    for b in range(start, stop):
                        gate, gates_b = rows_z[b - start], gates[d, b, slot]
                        for k in range(GATES * units):
                            gate[k] += load(gates_b[k])
                        if len(z) > 0:
                            z_b = z[d, b]
                            for k in range(GATES * units):
                                gate[k] += load(z_b[k])
                else:
                    block = rows_z[:stop - start]
                    multiply(units_of(x)[start:stop, t], kernels[d], block)
                    if step > 0 or not from_zero:
                        multiply(units_of(h)[d, start:stop], recurrents[d], block)
                for b in range(start, stop):
                    ahead = min(b + AHEAD, stop - 1)
                    prefetch(y[ahead, y_slot, own])
                    gate = rows_z[b - start, :GATES * units]
                    i, f = gate[:units], gate[units:2 * units]
                    g, o = gate[2 * units:3 * units], gate[3 * units:]
                    h_b, c_before_b, c_b, y_b = h[d, b], c_before[b], c[b], y[b, y_slot, own]
                    if keep:
                        prefetch(gates[d, ahead, slot])
                        prefetch(before[d, ahead, slot])
                        before_b = before[d, b, slot]
                        for k in range(units):
                            before_b[k] = h_b[k]
                    if len(mask) > 0 and mask[b, t] == 0:
                        for k in range(units):
                            c_b[k] = c_before_b[k]
                        if returns == END:
                            for k in range(units):
                                y_b[k] = load(h_b[k])
                        if keep:
                            gates_b = gates[d, b, slot]
                            for k in range(GATES * units):
                                store(gates_b, k, _ZERO)
                        continue
                    for k in range(2 * units):
                        gate[k] = _sigmoid(gate[k])
                    for k in range(units):
                        g[k] = _tanh(g[k])
                    for k in range(units):
                        o[k] = _sigmoid(o[k])
                    if keep:
                        gates_b = gates[d, b, slot]
                        for k in range(GATES * units):
                            store(gates_b, k, gate[k])
                    # By way of `out`, of which the compiler sees that it overlaps with nothing.
                    for k in range(units):
                        out[k] = f[k] * c_before_b[k] + i[k] * g[k]
                    for k in range(units):
                        c_b[k] = out[k]
                    for k in range(units):
                        out[k] = o[k] * _tanh(out[k])
                    for k in range(units):
                        store(h_b, k, out[k])
                    if returns == MEAN:
                        for k in range(units):
                            y_b[k] += out[k] * share
                    else:
                        for k in range(units):
                            y_b[k] = out[k]


@compiled
def backward(first, end, last, returns, from_zero, recurrents, gates, states, mask, d_y, d_h, d_c, passed,
             d_bias, d_z):
    """The gradient of `forward`; "d_" is the loss's derivative. Steps are taken from `end` back to `first`.

    Args:
        last: for each direction the number of its last step, the one that `END` returns.
        recurrents: packed transposed weights of each direction, or of the length 0: then there is one step
            only, and d_h came through the next step's product.
        gates: are replaced by the gradient of their arguments z.
        d_y: of y; d_h: `(directions, batch, units)`, of h after the steps, or `(0, ...)` for zeros; with
            recurrents it is written instead, of h before step 0, unless that was zero.
        d_c: `(2, batch, units)`, of the cell states after the steps, replaced by of those before them.
        passed: `(2, len(mask), units)`: what of d_h came past a sample's end, around the products.
        d_bias: `(2, 4 * units)`, these steps' is added.
        d_z: without recurrents `(directions, batch, 4 * units)`, written: the gates' new values once more.
    """
    _, batch, units = d_c.shape
    time, steps = mask.shape[1], gates.shape[2]
    through_here = len(recurrents) > 0
    gate = np.empty(GATES * units, np.float32)
    i, f, g, o = gate[:units], gate[units:2 * units], gate[2 * units:3 * units], gate[3 * units:]
    rows_h, tanh_c = np.empty((_BLOCK, padded(units)), np.float32), np.empty(units, np.float32)
    share = _ONE / np.float32(steps)
    for d in range(2):
        own, d_bias_d = slice(d * units, (d + 1) * units), d_bias[d]
        for start in range(0, batch, _BLOCK):
            stop = min(start + _BLOCK, batch)
            for step in range(end[d] - 1, first - 1, -1):
                slot, t = (step, step) if d == 0 else (steps - 1 - step, time - 1 - step)
                y_slot = t if returns == SEQUENCE else 0
                c_before, c = states[step, d], states[step + 1, d]
                rows_h[:] = _ZERO
                if through_here:
                    if step < last[d]:
                        later = slot + 1 if d == 0 else slot - 1
                        multiply(units_of(gates)[d, start:stop, later], recurrents[d], rows_h[:stop - start])
                elif d < len(d_h):
                    for b in range(start, stop):
                        d_out, d_h_b = rows_h[b - start], d_h[d, b]
                        for k in range(units):
                            d_out[k] = load(d_h_b[k])
                for b in range(start, stop):
                    ahead = min(b + AHEAD, stop - 1)
                    prefetch(gates[d, ahead, slot])
                    prefetch(d_y[ahead, y_slot, own])
                    d_out, gates_b = rows_h[b - start, :units], gates[d, b, slot]
                    c_before_b, c_b, d_c_b, d_y_b = c_before[b], c[b], d_c[d, b], d_y[b, y_slot, own]
                    beyond = len(mask) > 0 and mask[b, t] == 0
                    if returns == MEAN:
                        for k in range(units):
                            d_out[k] += d_y_b[k] * share
                    elif step == last[d] if returns == END else not beyond:
                        for k in range(units):
                            d_out[k] += d_y_b[k]
                    if len(mask) > 0:
                        passed_b = passed[d, b]
                        for k in range(units):
                            d_out[k] += passed_b[k]
                            passed_b[k] = d_out[k] if beyond else _ZERO
                    if beyond:
                        for k in range(GATES * units):
                            gate[k] = _ZERO
                    else:
                        for k in range(GATES * units):
                            gate[k] = load(gates_b[k])
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
                        store(gates_b, k, gate[k])
                    if not through_here:
                        d_z_b = d_z[d, b]
                        for k in range(GATES * units):
                            d_z_b[k] = gates_b[k]
            if through_here and not from_zero:
                slot = 0 if d == 0 else steps - 1
                rows_h[:] = _ZERO
                multiply(units_of(gates)[d, start:stop, slot], recurrents[d], rows_h[:stop - start])
                for b in range(start, stop):
                    d_out, d_h_b = rows_h[b - start], d_h[d, b]
                    for k in range(units):
                        store(d_h_b, k, d_out[k])


@compiled
def input_gradients(kernels, gates, d_x):
    """The gradient of x by way of both directions.

    Args:
        kernels: packed transposed weights of each direction; gates: of `backward`.
        d_x: values `(batch, time, features)`, of which a direction has read the first or last steps; written.
    """
    _, batch, steps, _ = gates.shape
    _, time, features = d_x.shape
    rows = np.empty((time, padded(features)), np.float32)
    for b in range(batch):
        rows[:] = _ZERO
        multiply(units_of(gates)[0, b], kernels[0], rows[:steps])
        multiply(units_of(gates)[1, b], kernels[1], rows[time - steps:])
        for t in range(time):
            d_x_t, row = d_x[b, t], rows[t]
            for k in range(features):
                store(d_x_t, k, row[k])
