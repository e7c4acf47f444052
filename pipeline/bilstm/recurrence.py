"""The recurrence of a bidirectional LSTM and its gradient, compiled by Numba.

A block of samples takes all its steps before the next block begins, so that it stays in the caches. The
equations are those of Keras's LSTM (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000),
the gradient is their chain rule:

    z = x @ kernel + bias + h_prev @ recurrent
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);  g = tanh(z_g)
    c = f * c_prev + i * g;  h = o * tanh(c)

`kernels.py` makes the bodies of TensorFlow operations of these functions.

Names: `d` is the direction, 0 forward and 1 backward, except in `d_...`, the loss's derivative with respect
to what follows. `t` is the place in the input, `step` the number in the order of computation. `k` is the
first cell of a group, `n` a sample of the block that starts at sample `start`. What the gradient needs is
kept in the order in which it is computed, because sequential access is fastest: of a block, the first group
of cells of every sample, then the second group.
"""

import numpy as np

from pipeline.bilstm.jit import compiled, inline
from pipeline.bilstm.matmul import (
    as_words, block_rows, left_operand, multiply, pack_columns, pack_rows, padded, values_in_word, whole_rows,
    whole_words, words_in)
from pipeline.bilstm.simd import (
    LANES, aligned, broadcast, prefetch, read, read_some, sigmoid, tanh, write, write_pair, write_some)

# Keras's LSTM orders its gates: input, forget, candidate, output. Here the cells of a layer are taken in
# groups of LANES, and a group's four gates lie side by side, as a product of matrices yields them together.
# The cells that the last group lacks are there, with weights of 0.
GATES = 4
GROUP = GATES * LANES
# What a layer returns of the hidden states h: each, their mean, or the one that each direction ends with.
SEQUENCE, MEAN, END = range(3)
_ZERO, _ONE = np.float32(0), np.float32(1)


@inline
def _place(d, step, time):
    """Where in the input a direction's step is."""
    return step if d == 0 else time - 1 - step


@inline
def _copy(a, i, b, j, number):
    """Copy values of a, from an item on, to b, of the same type or another."""
    for k in range(0, number, LANES):
        write_some(b, j[:-1] + (j[-1] + k,), read_some(a, i[:-1] + (i[-1] + k,), number - k), number - k)


@inline
def _is_past_end(mask, b, t):
    return len(mask) > 0 and mask[b, t] == 0


@inline
def _read_inputs(x, start, number, cells, operands):
    """Write a block's inputs to the left operands of all steps' products, beside the hidden states."""
    _, time, features = x.shape
    for n in range(number):
        for t in range(time):
            _copy(x, (start + n, t, 0), operands, (t, n, cells), features)


@inline
def _begin(d, start, number, keep, h0, c0, operand, c, h_kept, c_kept, kept):
    """Write a block's initial states to where the first step reads them."""
    cells = h0.shape[2]
    for n in range(number):
        for k in range(0, cells, LANES):
            h, cell = read(h0, (d, start + n, k)), k * number + n * LANES
            write(operand, (n, k), h)
            write(c, (cell,), read(c0, (d, start + n, k)))
            if keep:
                write(h_kept, (kept + cell,), h)
                write(c_kept, (kept + cell,), read(c, (cell,)))


@inline
def _take_step(z, k, d, t, start, number, returns, keep, is_last, share, mask, c, operand, next_operand,
               gates, h_kept, c_kept, kept, next_kept, y):
    """One step of a group of cells, from the gates' arguments z `(number, 64)` on."""
    cells, y_t = y.shape[2] // 2, t if returns == SEQUENCE else 0
    for n in range(number):
        b, cell, column = start + n, k * number + n * LANES, d * (y.shape[2] // 2) + k
        if _is_past_end(mask, b, t):
            i = f = g = o = broadcast(_ZERO)
            c_new = read(c, (cell,))
            h = read(operand, (n, k))
            write(y, (b, y_t, column), h if returns == END else broadcast(_ZERO))
        else:
            i, f = sigmoid(read(z, (n, 0)), operand), sigmoid(read(z, (n, LANES)), operand)
            g, o = tanh(read(z, (n, 2 * LANES)), operand), sigmoid(read(z, (n, 3 * LANES)), operand)
            c_new = f * read(c, (cell,)) + i * g
            write(c, (cell,), c_new)
            h = o * tanh(c_new, operand)
            if returns == MEAN:
                write(y, (b, y_t, column), h * share + read(y, (b, y_t, column)))
            elif returns == SEQUENCE or is_last:
                write(y, (b, y_t, column), h)
        if not is_last:
            write(next_operand, (n, k), h)
        if keep:
            place = GATES * (kept + cell)
            write_pair(gates, (place,), i, f)
            write_pair(gates, (place + 2 * LANES,), g, o)
            write(c_kept, (next_kept + cell,), c_new)
            if not is_last:
                write(h_kept, (next_kept + cell,), h)


@compiled
def forward(steps, returns, keep, from_zero, x, weights, bias, h0, c0, mask, gates, h_kept, c_kept, y):
    """All steps of both directions.

    Args:
        steps: of each direction: the forward one's first, of the backward one as many or one less.
        returns: `SEQUENCE`, `MEAN` (without a mask) or `END`: what of the hidden states to write to y.
        keep: whether to write what the gradient needs: gates, h_kept, c_kept.
        from_zero: whether h0 and c0 are zero.
        x: inputs, float32 `(batch, time, features)`.
        weights: packed, of each direction: words of `(cells + features, 4 * cells)`.
        bias: float32 `(2, 4 * cells)`.
        h0, c0: initial states, float32 `(2, batch, cells)`.
        mask: `(batch, time)`, 1 within a sample and 0 past its end, or `(0, time)` for none.
        gates: of all steps `(2, steps, batch, 4 * cells)`.
        h_kept, c_kept: `(2, steps + 1, batch, cells)`, before each step and after the last; of h_kept the last
            is not written.
        y: float32 `(batch, time, 2 * cells)` for `SEQUENCE`, else `(batch, 1, 2 * cells)`.
    """
    _, batch, cells = h0.shape
    _, time, features = x.shape
    block, depth = block_rows(gates), words_in(gates, cells + features)
    row = depth * values_in_word(gates)
    operands = aligned(time * block * row, gates).reshape((time, block, row))
    operands[:, :, cells + features:] = 0
    z = aligned(2 * block * GROUP, y).reshape((2, block, GROUP))
    c = aligned(block * cells, y)
    gates, h_kept, c_kept = gates.reshape(-1), h_kept.reshape(-1), c_kept.reshape(-1)
    share = _ONE / np.float32(steps[0])
    if returns == MEAN:
        y[:] = 0
    for start in range(0, batch, block):
        number = min(block, batch - start)
        rows = whole_rows(weights, number)
        _read_inputs(x, start, number, cells, operands)
        for d in range(2):
            kept = (d * (steps[0] + 1) * batch + start) * cells
            _begin(d, start, number, keep, h0, c0, operands[_place(d, 0, time)], c, h_kept, c_kept, kept)
            for step in range(steps[d]):
                t, is_last = _place(d, step, time), step + 1 == steps[d]
                operand = operands[t]
                next_operand = operand if is_last else operands[_place(d, step + 1, time)]
                kept = ((d * (steps[0] + 1) + step) * batch + start) * cells
                kept_gates = ((d * steps[0] + step) * batch + start) * cells
                # While the states are zero, the inputs are all that is multiplied.
                skip = whole_words(gates, cells) if step == 0 and from_zero else 0
                left = as_words(operands)[t, :rows, skip:]
                multiply(left, weights[d, :GROUP * depth], bias[d, :GROUP], z[0, :rows])
                for k in range(0, cells, LANES):
                    # Of the next group, so that no gate waits for its product to reach the cache.
                    j, turn = GATES * (k + LANES), k // LANES % 2
                    if k + LANES < cells:
                        multiply(left, weights[d, j * depth:(j + GROUP) * depth], bias[d, j:j + GROUP],
                                 z[1 - turn, :rows])
                    _take_step(z[turn], k, d, t, start, number, returns, keep, is_last, share, mask, c, operand,
                               next_operand, gates, h_kept, c_kept, kept_gates, kept + batch * cells, y)


@inline
def _gate_gradients(k, d, t, start, number, steps, step, returns, share, mask, gates, kept_gates, c_kept, kept,
                    next_kept, d_y, d_h, d_c, d_past, d_bias, d_rows):
    """Write one step's gradients of the gates' arguments, of a group of cells, to d_rows `(number, 4 * cells)`."""
    j, y_t = GATES * k, t if returns == SEQUENCE else 0
    bias_i, bias_f = read(d_bias, (d, j)), read(d_bias, (d, j + LANES))
    bias_g, bias_o = read(d_bias, (d, j + 2 * LANES)), read(d_bias, (d, j + 3 * LANES))
    for n in range(number):
        b, cell, column = start + n, k * number + n * LANES, d * (d_y.shape[2] // 2) + k
        place = GATES * (kept_gates + cell)
        d_out = read(d_h, (n, k))
        beyond = _is_past_end(mask, b, t)
        if returns == MEAN:
            d_out = d_out + read(d_y, (b, y_t, column)) * share
        elif step + 1 == steps[d] if returns == END else not beyond:
            d_out = d_out + read(d_y, (b, y_t, column))
        if len(mask) > 0:
            d_out = d_out + read(d_past, (cell,))
            write(d_past, (cell,), d_out if beyond else broadcast(_ZERO))
        if beyond:
            d_i = d_f = d_g = d_o = broadcast(_ZERO)
        else:
            i, f = read(gates, (place,)), read(gates, (place + LANES,))
            g, o = read(gates, (place + 2 * LANES,)), read(gates, (place + 3 * LANES,))
            tanh_c = tanh(read(c_kept, (next_kept + cell,)), gates)
            d_state = read(d_c, (cell,)) + d_out * o * (_ONE - tanh_c * tanh_c)
            d_i = d_state * g * i * (_ONE - i)
            d_f = d_state * read(c_kept, (kept + cell,)) * f * (_ONE - f)
            d_g = d_state * i * (_ONE - g * g)
            d_o = d_out * tanh_c * o * (_ONE - o)
            write(d_c, (cell,), d_state * f)
            bias_i, bias_f = bias_i + d_i, bias_f + d_f
            bias_g, bias_o = bias_g + d_g, bias_o + d_o
        write_pair(d_rows, (n, j), d_i, d_f)
        write_pair(d_rows, (n, j + 2 * LANES), d_g, d_o)
    write(d_bias, (d, j), bias_i)
    write(d_bias, (d, j + LANES), bias_f)
    write(d_bias, (d, j + 2 * LANES), bias_g)
    write(d_bias, (d, j + 3 * LANES), bias_o)


@inline
def _add_input_gradients(d_inputs, start, number, t, is_first, d_x):
    """Write a step's gradients of the inputs to d_x, or add them where the other direction was before."""
    features = d_x.shape[2]
    for n in range(number):
        for k in range(0, features, LANES):
            value, place = read(d_inputs, (n, k)), (start + n, t, k)
            if not is_first:
                value = value + read_some(d_x, place, features - k)
            write_some(d_x, place, value, features - k)


@inline
def _prefetch_group(k, d, t, start, number, is_sequence, gates, kept_gates, c_kept, kept, d_y):
    for n in range(number):
        cell, column = k * number + n * LANES, d * (d_y.shape[2] // 2) + k
        prefetch(gates, (GATES * (kept_gates + cell),), GROUP)
        prefetch(c_kept, (kept + cell,), LANES)
        prefetch(d_y, (start + n, t if is_sequence else 0, column), LANES)


@compiled
def backward(steps, returns, from_zero, x, weights, gates, h_kept, c_kept, mask, d_y, d_h0, d_c0, d_bias,
             d_weights, d_x):
    """The gradient of `forward`; all arguments from `d_h0` on are written.

    Args:
        weights: packed transposed, of each direction: words of `(4 * cells, cells)` for the states, then of
            `(4 * cells, features)`, padded, for the inputs.
        d_y: of y.
        d_h0, d_c0: float32 `(2, batch, cells)`; `(0, ...)` if the states began at zero.
        d_bias: float32 `(2, 4 * cells)`.
        d_weights: float32 `(2, cells + padded features, 4 * cells)`.
        d_x: float32 `(batch, time, features)`, or `(0, ...)` to leave it out.
    """
    batch, cells, columns = h_kept.shape[2], h_kept.shape[3], gates.shape[3]
    _, time, features = x.shape
    block, width = block_rows(gates), padded(features)
    in_step = words_in(gates, block)
    d_h = aligned(block * cells, d_bias).reshape((block, cells))
    d_inputs = aligned(block * width, d_bias).reshape((block, width))
    d_c, d_past = aligned(block * cells, d_bias), aligned(block * cells, d_bias)
    d_rows = aligned(block * columns, gates).reshape((block, columns))
    x_rows = aligned(block * width, gates).reshape((width // LANES, block, LANES))
    left = left_operand(gates, cells + width, steps[0] * in_step)
    right = as_words(aligned(steps[0] * in_step * values_in_word(gates) * columns, gates))
    if batch % block > 0:
        right[:] = 0
    zeros = np.zeros(max(cells, width), np.float32)
    share = _ONE / np.float32(steps[0])
    gates, h_kept, c_kept = gates.reshape(-1), h_kept.reshape(-1), c_kept.reshape(-1)
    for_states = columns // values_in_word(gates) * cells
    d_bias[:] = 0
    d_weights[:] = 0
    for d in range(2):
        for start in range(0, batch, block):
            number = min(block, batch - start)
            rows = whole_rows(weights, number)
            in_step = words_in(gates, number)
            depth = in_step * steps[d]
            d_h[:] = 0
            d_c[:] = 0
            d_past[:] = 0
            for step in range(steps[d] - 1, -1, -1):
                t = _place(d, step, time)
                kept_gates = ((d * steps[0] + step) * batch + start) * cells
                kept = ((d * (steps[0] + 1) + step) * batch + start) * cells
                for k in range(0, cells, LANES):
                    if k + LANES < cells:
                        _prefetch_group(k + LANES, d, t, start, number, returns == SEQUENCE, gates, kept_gates,
                                        c_kept, kept, d_y)
                    elif step > 0:
                        _prefetch_group(0, d, _place(d, step - 1, time), start, number, returns == SEQUENCE, gates,
                                        kept_gates - batch * cells, c_kept, kept - batch * cells, d_y)
                    _gate_gradients(k, d, t, start, number, steps, step, returns, share, mask, gates, kept_gates,
                                    c_kept, kept, kept + batch * cells, d_y, d_h, d_c, d_past, d_bias, d_rows)
                for n in range(number):
                    for k in range(0, width, LANES):
                        write(x_rows, (k // LANES, n, 0), read_some(x, (start + n, t, k), features - k))
                h_prev = h_kept[kept:kept + number * cells].reshape((cells // LANES, number, LANES))
                pack_columns(h_prev, 0, step * in_step, left)
                pack_columns(x_rows[:, :number], cells, step * in_step, left)
                pack_rows(d_rows[:number], step * in_step, depth, right)
                operand = as_words(d_rows)[:rows]
                if step > 0 or not from_zero:
                    multiply(operand, weights[d, :for_states], zeros[:cells], d_h[:rows])
                if len(d_x) > 0:
                    multiply(operand, weights[d, for_states:], zeros[:width], d_inputs[:rows])
                    _add_input_gradients(d_inputs, start, number, t, d == 0 or t >= steps[0], d_x)
            # Before step 0 the states are zero, if they are not given.
            skip = in_step if from_zero else 0
            panels = right[:depth * columns]
            multiply(left[:cells, skip:depth], panels, None, d_weights[d, :cells])
            inputs = whole_rows(weights, features)
            multiply(left[cells:cells + inputs, :depth], panels, None, d_weights[d, cells:cells + inputs])
            if not from_zero:
                for n in range(number):
                    for k in range(0, cells, LANES):
                        cell, place = k * number + n * LANES, (d, start + n, k)
                        write(d_h0, place, read(d_h, (n, k)) + read(d_past, (cell,)))
                        write(d_c0, place, read(d_c, (cell,)))
