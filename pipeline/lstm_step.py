"""The steps of a bidirectional LSTM, compiled by Numba: a few samples at a time, which stay in the caches.

The equations are those of Keras's LSTM (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et
al. 2000), the gradient is their chain rule:

    z = x @ kernel + bias + h_before @ recurrent
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);  g = tanh(z_g)
    c = f * c_before + i * g;  h = o * tanh(c)

`kernels.py` makes TensorFlow operations of these functions, `bilstm.py` strings them together.
"""

import numpy as np

from pipeline.compiled import compiled, inlined
from pipeline.products import (
    multiply, pack_units, pack_units_beside, padded, units_in, units_of, values_in_unit)
from pipeline.vectors import LANES, aligned, copy, prefetch, read, sigmoid, splat, tanh, write

# Keras's LSTM orders its gates: input, forget, candidate, output. Here the cells of a layer are taken in
# groups of LANES, whose number is rounded up, and a group's four gates lie side by side, as a product of
# matrices yields them together.
GATES = 4
# What a layer returns of the states h: each, their mean, or the one that each direction ends with.
SEQUENCE, MEAN, END = range(3)

# Samples that take their steps together: a whole number of the products' tiles.
_BLOCK = 12
_ZERO, _ONE = np.float32(0), np.float32(1)


@inlined
def _place(d, step, steps, time):
    """Where a direction's step is among the steps that are taken, and in time."""
    return (step, step) if d == 0 else (steps - 1 - step, time - 1 - step)


# What the gradient needs is kept in the order in which it is computed, for the memory is fastest read and
# written that way: of a block of samples the first group of cells of each, then the second group. Only where
# TensorFlow does the products is it sample by sample, as these need it.
@inlined
def _cells(index, batch, start, units):
    """A block's first cell in an array `(..., batch, units)`, after `index` whole batches."""
    return (index * batch + start) * units


@inlined
def _apart(in_order, number, units):
    """Cell k of a block's sample n is there k times the first and n times the second further on."""
    return (number, LANES) if in_order else (1, units)


@inlined
def _copy(a, i, b, j, number):
    """So many values of a, from an item on, to b."""
    whole = number - number % LANES
    for k in range(0, whole, LANES):
        copy(a, i[:-1] + (i[-1] + k,), b, j[:-1] + (j[-1] + k,))
    for k in range(whole, number):
        b[j[:-1] + (j[-1] + k,)] = a[i[:-1] + (i[-1] + k,)]


@inlined
def _group_row(values, row, units, out, out_row, part):
    for gate in range(GATES):
        for k in range(0, units, LANES):
            place = (out_row, GATES * k + gate * LANES)
            if k + LANES <= units:
                write(out, place, read(values, (row, gate * units + k)))
            else:
                part[:] = 0
                for v in range(units - k):
                    part[v] = values[row, gate * units + k + v]
                write(out, place, read(part, (0,)))


@inlined
def _ungroup_row(values, row, units, out, out_row):
    for gate in range(GATES):
        for k in range(0, units, LANES):
            _copy(values, (row, GATES * k + gate * LANES), out, (out_row, gate * units + k),
                  min(LANES, units - k))


@compiled
def group(kernel, recurrent, bias, weights, grouped_bias):
    """One direction's parameters, in Keras's order, in that of the functions below.

    Args:
        kernel: float32 `(features, 4 * units)`; recurrent: `(units, 4 * units)`; bias: `(1, 4 * units)`.
        weights: `(cells + features, 4 * cells)`, written, cells being the units of whole groups: of the
            states and then of the inputs. What belongs to the cells beyond the units is 0.
        grouped_bias: float32 `(1, 4 * cells)`, written.
    """
    units, features = len(recurrent), len(kernel)
    cells = len(weights) - features
    part = np.zeros(LANES, np.float32)
    for row in range(units):
        _group_row(recurrent, row, units, weights, row, part)
    weights[units:cells] = 0
    for row in range(features):
        _group_row(kernel, row, units, weights, cells + row, part)
    _group_row(bias, 0, units, grouped_bias, 0, part)


@compiled
def ungroup(weights, grouped_bias, kernel, recurrent, bias):
    """The reverse of `group`, for their gradients: all float32, the last three are written."""
    units, features = len(recurrent), len(kernel)
    for row in range(units):
        _ungroup_row(weights, row, units, recurrent, row)
    for row in range(features):
        _ungroup_row(weights, len(weights) - features + row, units, kernel, row)
    _ungroup_row(grouped_bias, 0, units, bias, 0)


@compiled
def forward(first, end, steps, returns, keep, from_zero, x, weights, gates, z, bias, c, states, h, before,
            mask, y):
    """Steps of both directions.

    The matrix products of a step are either done here, with packed weights, or were done before: then
    `weights` has the length 0, there is one step only, `gates` holds the inputs' products and z the states'.

    Args:
        first: number of the first step, in the order of computation; end: for each direction, that after the
            last; steps: all that there are.
        returns: `SEQUENCE`, `MEAN` (without a mask) or `END`: what of h to write into y.
        keep: whether `gates`, `before` and all of `states` are to be written, which only the gradient needs.
        from_zero: whether h is zero before step 0, and its product left out.
        x: inputs `(batch, time, features)`; weights: of each direction, packed: `(units + features, 4 *
            units)`, of the states and then of the inputs.
        gates: `(2, steps, batch, 4 * units)`, forward then backward, steps in the input's order: with `keep`
            is filled with the steps' gates.
        z: `(1 or 2, batch, 4 * units)`, or `(0, ...)` for zeros; bias: `(2, 4 * units)`.
        c: cell states before step 0, `(2, batch, units)`.
        states: gets the cell states `(steps + 1, 2, batch, units)` before and after each step; without `keep`
            `(1, 2, batch, units)`, replaced in every step.
        h: `(2, batch, units)`, states before the steps; without weights replaced by those after the step.
        before: `(2, steps, batch, units)`: gets h as it was before each step.
        mask: `(batch, time)`, 1 within a sample and 0 past its end, or `(0, time)` for none.
        y: `(batch, time, 2 * units)` for `SEQUENCE`, else `(batch, 1, 2 * units)`; for `MEAN` zero before
            the first step.
    """
    _, batch, units = h.shape
    time, features = mask.shape[1], x.shape[2]
    projected = len(weights) == 0
    # Left operands of all steps' products: the states, which a step writes for the next one, and the inputs.
    depth = units_in(h, units + features)
    rows = np.zeros((0 if projected else time, _BLOCK, depth * values_in_unit(h)), h.dtype)
    z_rows = aligned(_BLOCK * GATES * LANES, y).reshape((_BLOCK, GATES * LANES))
    share = _ONE / np.float32(steps)
    gates, states, before = gates.reshape(-1), states.reshape(-1), before.reshape(-1)
    for start in range(0, batch, _BLOCK):
        number = min(_BLOCK, batch - start)
        k_apart, n_apart = _apart(not projected, number, units)
        if not projected:
            for n in range(number):
                for t in range(time):
                    _copy(x, (start + n, t, 0), rows, (t, n, units), features)
        for d in range(2):
            if first == 0:
                slot, t = _place(d, 0, steps, time)
                old, cells = _cells(d, batch, start, units), _cells(d * steps + slot, batch, start, units)
                for n in range(number):
                    if not projected:
                        _copy(h, (d, start + n, 0), rows, (t, n, 0), units)
                    for k in range(0, units, LANES):
                        cell = k * k_apart + n * n_apart
                        copy(c, (d, start + n, k), states, (old + cell,))
                        if keep:
                            copy(h, (d, start + n, k), before, (cells + cell,))
            for step in range(first, end[d]):
                slot, t = _place(d, step, steps, time)
                next_slot, next_t = _place(d, step + 1, steps, time)
                y_slot = t if returns == SEQUENCE else 0
                cells = _cells(d * steps + slot, batch, start, units)
                next_cells = _cells(d * steps + next_slot, batch, start, units)
                old = _cells(2 * step + d if keep else d, batch, start, units)
                new = _cells(2 * (step + 1) + d, batch, start, units) if keep else old
                # Where the states are zero, what is left is the inputs.
                operand = units_of(rows)[t, :number, units_in(h, units) if step == 0 and from_zero else 0:]
                for k in range(0, units, LANES):
                    j = GATES * k
                    if projected:
                        for n in range(number):
                            for v in range(0, GATES * LANES, LANES):
                                place = GATES * (cells + n * units + k) + v
                                total = read(gates, (place,)) + read(bias, (d, j + v))
                                if len(z) > 0:
                                    total = total + read(z, (d, start + n, j + v))
                                write(z_rows, (n, v), total)
                    else:
                        multiply(operand, weights[d, j * depth:(j + GATES * LANES) * depth],
                                 bias[d, j:j + GATES * LANES], z_rows[:number])
                    ahead_k = k + LANES if k + LANES < units else 0
                    ahead = step if ahead_k > 0 else min(step + 1, end[d] - 1)
                    ahead_slot, ahead_t = _place(d, ahead, steps, time)
                    ahead_cells = _cells(d * steps + ahead_slot, batch, start, units) + ahead_k * k_apart
                    ahead_new = _cells(2 * (ahead + 1) + d, batch, start, units) + ahead_k * k_apart
                    for n in range(number):
                        b, cell = start + n, k * k_apart + n * n_apart
                        if returns == SEQUENCE:
                            prefetch(y, (b, ahead_t, d * units + ahead_k), LANES)
                        if keep:
                            prefetch(gates, (GATES * (ahead_cells + n * n_apart),), GATES * LANES)
                            prefetch(states, (ahead_new + n * n_apart,), LANES)
                        if len(mask) > 0 and mask[b, t] == 0:
                            write(states, (new + cell,), read(states, (old + cell,)))
                            i = f = g = o = splat(_ZERO)
                        else:
                            i = sigmoid(read(z_rows, (n, 0)), h)
                            f = sigmoid(read(z_rows, (n, LANES)), h)
                            g = tanh(read(z_rows, (n, 2 * LANES)), h)
                            o = sigmoid(read(z_rows, (n, 3 * LANES)), h)
                            write(states, (new + cell,), f * read(states, (old + cell,)) + i * g)
                        write(z_rows, (n, 0), o)
                        if keep:
                            place = GATES * (cells + cell)
                            write(gates, (place,), i)
                            write(gates, (place + LANES,), f)
                            write(gates, (place + 2 * LANES,), g)
                            write(gates, (place + 3 * LANES,), o)
                    for n in range(number):
                        b, cell = start + n, k * k_apart + n * n_apart
                        place = (b, y_slot, d * units + k)
                        if len(mask) > 0 and mask[b, t] == 0:
                            out = read(h, (d, b, k)) if projected else read(rows, (t, n, k))
                            write(y, place, out if returns == END else splat(_ZERO))
                        else:
                            out = read(z_rows, (n, 0)) * tanh(read(states, (new + cell,)), h)
                            if returns == MEAN:
                                write(y, place, out * share + read(y, place))
                            elif returns == SEQUENCE or step + 1 == end[d]:
                                write(y, place, out)
                        if projected:
                            write(h, (d, b, k), out)
                        elif step + 1 < end[d]:
                            write(rows, (next_t, n, k), out)
                        # Also for the step that the backward direction may lack: its part is 0 times this.
                        if keep and step + 1 < steps:
                            write(before, (next_cells + cell,), out)


@compiled
def backward(first, end, last, returns, from_zero, x, weights, gates, states, before, mask, d_y, d_h, d_c,
             passed, d_bias, d_weights, d_z):
    """The gradient of `forward`; "d_" is the loss's derivative. Steps are taken from `end` back to `first`.

    Args:
        last: for each direction the number of its last step, the one that `END` returns.
        weights: the states' weights of each direction, packed transposed, or of the length 0: then there is
            one step only, and d_h came through the next step's product.
        gates: are replaced by the gradient of their arguments z.
        d_y: of y; d_h: `(directions, batch, units)`, of h after the steps, or `(0, ...)` for zeros; with
            weights it is written instead, of h before step 0, unless that was zero.
        d_c: `(2, batch, units)`, of the cell states after the steps, replaced by of those before them.
        passed: `(2, len(mask), units)`: what of d_h came past a sample's end, around the products.
        d_bias: `(2, 4 * units)`, these steps' is added.
        d_weights: `(2, units + features, 4 * units)`, these steps' is added, if there are weights.
        d_z: without weights `(directions, batch, 4 * units)`, written: the gates' new values once more.
    """
    _, batch, units = d_c.shape
    time, steps = mask.shape[1], gates.shape[1]
    features = x.shape[2]
    through_here = len(weights) > 0
    h_rows = aligned(_BLOCK * units, d_y).reshape((_BLOCK, units))
    zeros = np.zeros(units, np.float32)
    share = _ONE / np.float32(steps)
    most = steps * units_in(before, _BLOCK) if through_here else 0
    left = np.empty((most, units + features), weights.dtype)
    panels = aligned(most * GATES * units, left)
    d_rows = aligned(_BLOCK * GATES * units, gates).reshape((_BLOCK, GATES * units))
    gates, states, before = gates.reshape(-1), states.reshape(-1), before.reshape(-1)
    for d in range(2):
        for start in range(0, batch, _BLOCK):
            number = min(_BLOCK, batch - start)
            stop = start + number
            in_step = units_in(before, number)
            depth = in_step * (end[d] - first)
            k_apart, n_apart = _apart(through_here, number, units)
            for step in range(end[d] - 1, first - 1, -1):
                slot, t = _place(d, step, steps, time)
                y_slot = t if returns == SEQUENCE else 0
                cells = _cells(d * steps + slot, batch, start, units)
                old = _cells(2 * step + d, batch, start, units)
                new = _cells(2 * (step + 1) + d, batch, start, units)
                if through_here and step < last[d]:
                    multiply(units_of(d_rows)[:number], weights[d], zeros, h_rows[:number])
                elif not through_here and d < len(d_h):
                    for n in range(number):
                        for k in range(0, units, LANES):
                            write(h_rows, (n, k), read(d_h, (d, start + n, k)))
                else:
                    h_rows[:] = 0
                for k in range(0, units, LANES):
                    j = GATES * k
                    bias_i, bias_f = read(d_bias, (d, j)), read(d_bias, (d, j + LANES))
                    bias_g, bias_o = read(d_bias, (d, j + 2 * LANES)), read(d_bias, (d, j + 3 * LANES))
                    ahead_k = k + LANES if k + LANES < units else 0
                    ahead = step if ahead_k > 0 else max(step - 1, first)
                    ahead_slot, ahead_t = _place(d, ahead, steps, time)
                    ahead_cells = _cells(d * steps + ahead_slot, batch, start, units) + ahead_k * k_apart
                    ahead_old = _cells(2 * ahead + d, batch, start, units) + ahead_k * k_apart
                    for n in range(number):
                        b, cell = start + n, k * k_apart + n * n_apart
                        place = GATES * (cells + cell)
                        prefetch(gates, (GATES * (ahead_cells + n * n_apart),), GATES * LANES)
                        prefetch(states, (ahead_old + n * n_apart,), LANES)
                        prefetch(d_y, (b, ahead_t if returns == SEQUENCE else 0, d * units + ahead_k), LANES)
                        if through_here:
                            prefetch(before, (cells + cell,), LANES)
                            prefetch(x, (b, t, k * features // units), features * LANES // units)
                        d_out = read(h_rows, (n, k))
                        beyond = len(mask) > 0 and mask[b, t] == 0
                        if returns == MEAN:
                            d_out = d_out + read(d_y, (b, y_slot, d * units + k)) * share
                        elif step == last[d] if returns == END else not beyond:
                            d_out = d_out + read(d_y, (b, y_slot, d * units + k))
                        if len(mask) > 0:
                            d_out = d_out + read(passed, (d, b, k))
                            write(passed, (d, b, k), d_out if beyond else splat(_ZERO))
                        if beyond:
                            d_i = d_f = d_g = d_o = splat(_ZERO)
                        else:
                            i, f = read(gates, (place,)), read(gates, (place + LANES,))
                            g, o = read(gates, (place + 2 * LANES,)), read(gates, (place + 3 * LANES,))
                            tanh_c = tanh(read(states, (new + cell,)), gates)
                            d_state = read(d_c, (d, b, k)) + d_out * o * (_ONE - tanh_c * tanh_c)
                            d_i = d_state * g * i * (_ONE - i)
                            d_f = d_state * read(states, (old + cell,)) * f * (_ONE - f)
                            d_g = d_state * i * (_ONE - g * g)
                            d_o = d_out * tanh_c * o * (_ONE - o)
                            write(d_c, (d, b, k), d_state * f)
                            bias_i, bias_f = bias_i + d_i, bias_f + d_f
                            bias_g, bias_o = bias_g + d_g, bias_o + d_o
                        write(d_rows, (n, j), d_i)
                        write(d_rows, (n, j + LANES), d_f)
                        write(d_rows, (n, j + 2 * LANES), d_g)
                        write(d_rows, (n, j + 3 * LANES), d_o)
                        for v in range(0, GATES * LANES, LANES):
                            copy(d_rows, (n, j + v), gates, (place + v,))
                            if not through_here:
                                copy(d_rows, (n, j + v), d_z, (d, b, j + v))
                    write(d_bias, (d, j), bias_i)
                    write(d_bias, (d, j + LANES), bias_f)
                    write(d_bias, (d, j + 2 * LANES), bias_g)
                    write(d_bias, (d, j + 3 * LANES), bias_o)
                if through_here:
                    k = (step - first) * in_step
                    h_before = before[cells:cells + number * units].reshape((units // LANES, number, LANES))
                    pack_units_beside(h_before, x[start:stop, t], k, left)
                    pack_units(d_rows[:number], k, depth, panels)
            if through_here:
                # Before step 0 the states are zero, if they are not given.
                skip = in_step if from_zero else 0
                right = panels[:depth * GATES * units]
                multiply(left[skip:depth, :units].T, right, None, d_weights[d, :units])
                multiply(left[:depth, units:].T, right, None, d_weights[d, units:])
                if not from_zero:
                    multiply(units_of(d_rows)[:number], weights[d], zeros, h_rows[:number])
                    for n in range(number):
                        for k in range(0, units, LANES):
                            write(d_h, (d, start + n, k), read(h_rows, (n, k)))


@compiled
def input_gradients(weights, backward_steps, gates, d_x):
    """The gradient of x by way of both directions.

    Args:
        weights: the inputs' weights of each direction, packed transposed; backward_steps: how many of the
            steps the backward direction takes; gates: of `backward`.
        d_x: float32 `(batch, time, features)`, written.
    """
    _, steps, batch, columns = gates.shape
    _, time, features = d_x.shape
    d_rows = aligned(_BLOCK * columns, gates).reshape((_BLOCK, columns))
    gates = gates.reshape(-1)
    whole = features - features % LANES
    zeros = np.zeros(padded(features), np.float32)
    rows = aligned(2 * _BLOCK * len(zeros), zeros).reshape((2, _BLOCK, len(zeros)))
    for start in range(0, batch, _BLOCK):
        number = min(_BLOCK, batch - start)
        for t in range(time):
            rows[:] = 0
            for d, slot in ((0, t), (1, t - (time - steps))):
                if (slot < steps) if d == 0 else (slot >= steps - backward_steps):
                    # From the order of computation to rows.
                    place = _cells(d * steps + slot, batch, start, columns)
                    for j in range(0, columns, GATES * LANES):
                        for n in range(number):
                            for v in range(0, GATES * LANES, LANES):
                                copy(gates, (place + v,), d_rows, (n, j + v))
                            place += GATES * LANES
                    multiply(units_of(d_rows)[:number], weights[d], zeros, rows[d, :number])
            for n in range(number):
                for k in range(0, whole, LANES):
                    write(d_x, (start + n, t, k), read(rows, (0, n, k)) + read(rows, (1, n, k)))
                for k in range(whole, features):
                    d_x[start + n, t, k] = rows[0, n, k] + rows[1, n, k]
