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
    as_words, block_part, block_rows, left_strides, multiply, multiply_part, pack_columns, pack_rows, padded, values_in_word, whole_rows,
    whole_words, words_in)
from pipeline.bilstm.simd import (
    LANES, SIGMOID, TANH, aligned, broadcast, pointer, prefetch, read, read_some, sigmoids, tanhs, write,
    write_pair, write_some)

# Keras's LSTM orders its gates: input, forget, candidate, output. Here the cells of a layer are taken in
# groups of LANES, and a group's four gates lie side by side, as a product of matrices yields them together.
# The cells that the last group lacks are there, with weights of 0.
GATES = 4
GROUP = GATES * LANES
# What a layer returns of the hidden states h: each, their mean, or the one that each direction ends with.
SEQUENCE, MEAN, END = range(3)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)


@inline
def _place(d, step, time):
    """Where in the input a direction's step is."""
    return step if d == 0 else time - 1 - step


@inline
def _kept(d, step, start, kept):
    """Where a block's values begin in `(2, steps + 1, batch, cells)`: of a step, or before it."""
    _, steps, batch, cells = kept.shape
    return ((d * steps + step) * batch + start) * cells


@compiled
def _read_inputs(x, start, number, cells, operands):
    """Write a block's inputs to the left operands of all steps' products, beside the hidden states."""
    _, time, features = x.shape
    whole = features // LANES * LANES
    for t in range(time):
        source, target = pointer(x, (start, t, 0)), pointer(operands, (t, 0, cells))
        for n in range(number):
            i, j = n * time * features, n * operands.shape[2]
            for k in range(0, whole, LANES):
                write(target, j + k, read(source, i + k))
            if whole < features:
                write_some(target, j + whole, read_some(source, i + whole, features - whole), features - whole)


@compiled
def _begin(d, start, number, keep, h0, c0, operand, c, h_kept, c_kept):
    """Write a block's initial states to where the first step reads them."""
    block, cells = operand.shape[0], h_kept.shape[3]
    kept = _kept(d, 0, start, h_kept)
    h_start, c_start = pointer(h_kept, (0, 0, 0, 0)), pointer(c_kept, (0, 0, 0, 0))
    for n in range(number):
        for k in range(0, cells, LANES):
            h = cell = broadcast(_ZERO)
            if len(h0) > 0:
                h, cell = read(h0, (d, start + n, k)), read(c0, (d, start + n, k))
            write(operand, (n, k), h)
            write(c, (k * block + n * LANES,), cell)
            if keep:
                write(h_start, kept + k * number + n * LANES, h)
                write(c_start, kept + k * number + n * LANES, cell)


@inline
def _update_cells(z, c, number, keep, gates, c_kept):
    """From the gates' arguments z `(number, 64)` to the new cell states; o is left in z's first columns."""
    for n in range(number):
        row, cell = n * GROUP, n * LANES
        i, f, g, o = sigmoids(read(z, row) * SIGMOID, read(z, row + LANES) * SIGMOID,
                              read(z, row + 2 * LANES) * TANH, read(z, row + 3 * LANES) * SIGMOID, gates)
        g = _TWO * g - _ONE
        c_new = f * read(c, cell) + i * g
        write(c, cell, c_new)
        write(z, row, o)
        if keep:
            write_pair(gates, row, i, f)
            write_pair(gates, row + 2 * LANES, g, o)
            write(c_kept, cell, c_new)


@inline
def _update_cells_within(mask, mask_row, z, c, number, keep, gates, c_kept):
    """The same for samples that may have ended: their gates are 0, their states stay."""
    for n in range(number):
        row, cell, c_old = n * GROUP, n * LANES, read(c, n * LANES)
        _update_cells(pointer(z, row), pointer(c, cell), 1, keep, pointer(gates, row if keep else 0),
                      pointer(c_kept, cell if keep else 0))
        if mask[n * mask_row] == 0:
            write(c, cell, c_old)
            if keep:
                for v in range(0, GROUP, LANES):
                    write(gates, row + v, broadcast(_ZERO))
                write(c_kept, cell, c_old)


@inline
def _write_hidden(out, h, n, h_row, y, y_row, writes_y, adds_y, share, keep, h_kept):
    write(h, n * h_row, out)
    if adds_y:
        write(y, n * y_row, out * share + read(y, n * y_row))
    elif writes_y:
        write(y, n * y_row, out)
    if keep:
        write(h_kept, n * LANES, out)


@inline
def _update_hidden(z, c, number, h, h_row, y, y_row, writes_y, adds_y, share, keep, h_kept):
    """From the new cell states, and o in z's first columns, to the hidden states."""
    fours = number - number % 4
    for n in range(0, fours, 4):
        row, cell = n * GROUP, n * LANES
        t0, t1, t2, t3 = tanhs(read(c, cell), read(c, cell + LANES), read(c, cell + 2 * LANES),
                               read(c, cell + 3 * LANES), h)
        _write_hidden(read(z, row) * t0, h, n, h_row, y, y_row, writes_y, adds_y, share, keep, h_kept)
        _write_hidden(read(z, row + GROUP) * t1, h, n + 1, h_row, y, y_row, writes_y, adds_y, share, keep, h_kept)
        _write_hidden(read(z, row + 2 * GROUP) * t2, h, n + 2, h_row, y, y_row, writes_y, adds_y, share, keep,
                      h_kept)
        _write_hidden(read(z, row + 3 * GROUP) * t3, h, n + 3, h_row, y, y_row, writes_y, adds_y, share, keep,
                      h_kept)
    for n in range(fours, number):
        cell = read(c, n * LANES)
        t0, _, _, _ = tanhs(cell, cell, cell, cell, h)
        _write_hidden(read(z, n * GROUP) * t0, h, n, h_row, y, y_row, writes_y, adds_y, share, keep, h_kept)


@inline
def _carry_hidden(mask, mask_row, number, h_old, h, h_row, y, y_row, writes_y, returns_end, keep, h_kept):
    """Undo `_update_hidden` for samples that have ended: the hidden states stay, the output is 0 or the last."""
    for n in range(number):
        if mask[n * mask_row] == 0:
            out = read(h_old, n * h_row)
            write(h, n * h_row, out)
            if keep:
                write(h_kept, n * LANES, out)
            if returns_end:
                write(y, n * y_row, out)
            elif writes_y:
                write(y, n * y_row, broadcast(_ZERO))


@inline
def _prefetch_forward(number, keep, gates, c_kept, h_kept, y, y_row, writes_y):
    """Fetch what the next group of cells is written to."""
    for n in range(number):
        if writes_y:
            prefetch(y, n * y_row, LANES)
        if keep:
            prefetch(gates, n * GROUP, GROUP)
            prefetch(c_kept, n * LANES, LANES)
            prefetch(h_kept, n * LANES, LANES)


@compiled
def forward(steps, returns, keep, x, weights, bias, h0, c0, mask, gates, h_kept, c_kept, y):
    """All steps of both directions.

    Args:
        steps: of each direction: the forward one's first, of the backward one as many or one less.
        returns: `SEQUENCE`, `MEAN` (without a mask) or `END`: what of the hidden states to write to y.
        keep: whether to write what the gradient needs: gates, h_kept, c_kept.
        x: inputs, float32 `(batch, time, features)`.
        weights: packed, of each direction: words of `(cells + features, 4 * cells)`.
        bias: float32 `(2, 4 * cells)`.
        h0, c0: initial states, float32 `(2, batch, cells)`, or `(0, ...)` for zeros.
        mask: `(batch, time)`, 1 within a sample and 0 past its end, or `(0, time)` for none.
        gates: `(2, steps + 1, batch, 4 * cells)`: of each step; the last is not written.
        h_kept, c_kept: `(2, steps + 1, batch, cells)`, before each step and after the last.
        y: float32 `(batch, time, 2 * cells)` for `SEQUENCE`, else `(batch, 1, 2 * cells)`.
    """
    batch, time, features = x.shape
    cells = bias.shape[1] // GATES
    block, depth = block_rows(gates), words_in(gates, cells + features)
    # The left operands of all steps' products: hidden states, inputs. The last step writes to a row of its own.
    row = depth * values_in_word(gates)
    operands = aligned((time + 1) * block * row, gates).reshape((time + 1, block, row))
    operands[:, :, cells + features:] = 0
    z = aligned(2 * block * GROUP, y)
    c = aligned(block * cells, y)
    if returns == MEAN:
        y[:] = 0
    for start in range(0, batch, block):
        number = min(block, batch - start)
        _read_inputs(x, start, number, cells, operands)
        for d in range(2):
            _begin(d, start, number, keep, h0, c0, operands[_place(d, 0, time)], c, h_kept, c_kept)
            _run_steps(d, steps[d], start, number, returns, keep, len(h0) == 0, operands, weights, bias, z, c, mask,
                       gates, h_kept, c_kept, y)


@compiled
def _run_steps(d, steps, start, number, returns, keep, from_zero, operands, weights, bias, z, c, mask, gates,
               h_kept, c_kept, y):
    """The steps of one direction for a block of samples; arguments as in `forward`."""
    batch, y_times, columns = y.shape
    time, block, h_row = operands.shape[0] - 1, operands.shape[1], operands.shape[2]
    cells, in_word = columns // 2, values_in_word(operands)
    depth, rows, part = h_row // in_word, whole_rows(weights, number), block_part(operands)
    y_row = y_times * columns
    share = _ONE / np.float32(steps)
    all_words = as_words(operands)
    gates_start, h_start, c_start = (pointer(gates, (0, 0, 0, 0)), pointer(h_kept, (0, 0, 0, 0)),
                                     pointer(c_kept, (0, 0, 0, 0)))
    for step in range(steps):
        t, is_last = _place(d, step, time), step + 1 == steps
        h_old = pointer(operands, (t, 0, 0))
        h_new = pointer(operands, (time if is_last else _place(d, step + 1, time), 0, 0))
        keeps_h = keep and not is_last
        writes_y = returns == SEQUENCE or (returns == END and is_last)
        # While the states are zero, the inputs are all that is multiplied.
        skip = whole_words(operands, cells) if step == 0 and from_zero else 0
        left = pointer(all_words, (t, 0, skip))
        kept_old, kept = _kept(d, step, start, h_kept), _kept(d, step + 1, start, h_kept)
        for k in range(-LANES, cells, LANES):
            turn, j = k // LANES % 2, GATES * (k + LANES)
            z_k, z_next = pointer(z, (turn * block * GROUP,)), pointer(z, ((1 - turn) * block * GROUP,))
            c_k, y_k = pointer(c, (k * block,)), pointer(y, (start, t if returns == SEQUENCE else 0, d * cells + k))
            gates_k = pointer(gates_start, GATES * (kept_old + k * number))
            c_k_kept, h_k_kept = pointer(c_start, kept + k * number), pointer(h_start, kept + k * number)
            for n in range(0, number, part):
                # The next group's product beside this group's gates, which must not wait for theirs.
                if k + LANES < cells:
                    multiply_part(n // part, (number + part - 1) // part, left, depth, rows, depth - skip,
                                  pointer(weights, (d, j * depth)), skip, depth, pointer(bias, (d, j)), z_next, GROUP)
                if k < 0:
                    continue
                some, z_n, c_n = min(part, number - n), pointer(z_k, n * GROUP), pointer(c_k, n * LANES)
                gates_n, c_n_kept = pointer(gates_k, n * GROUP), pointer(c_k_kept, n * LANES)
                h_n, h_n_kept, y_n = pointer(h_new, n * h_row + k), pointer(h_k_kept, n * LANES), pointer(y_k, n * y_row)
                if k + LANES < cells:
                    _prefetch_forward(some, keep, pointer(gates_n, number * GROUP), pointer(c_n_kept, number * LANES),
                                      pointer(h_n_kept, number * LANES), pointer(y_n, LANES), y_row, writes_y)
                if len(mask) == 0:
                    _update_cells(z_n, c_n, some, keep, gates_n, c_n_kept)
                else:
                    _update_cells_within(pointer(mask, (start + n, t)), time, z_n, c_n, some, keep, gates_n, c_n_kept)
                _update_hidden(z_n, c_n, some, h_n, h_row, y_n, y_row, writes_y, returns == MEAN, share, keeps_h,
                               h_n_kept)
                if len(mask) > 0:
                    _carry_hidden(pointer(mask, (start + n, t)), time, some, pointer(h_old, n * h_row + k), h_n, h_row,
                                  y_n, y_row, writes_y, returns == END, keeps_h, h_n_kept)


@inline
def _gate_gradient(gates, c_old, tanh_c, d_out, d_c, d_rows):
    """The gradients of the gates' arguments of one sample's group of cells; d_c goes back by a step."""
    i, f, g, o = read(gates, 0), read(gates, LANES), read(gates, 2 * LANES), read(gates, 3 * LANES)
    d_state = read(d_c, 0) + d_out * o * (_ONE - tanh_c * tanh_c)
    d_i = d_state * g * i * (_ONE - i)
    d_f = d_state * read(c_old, 0) * f * (_ONE - f)
    d_g = d_state * i * (_ONE - g * g)
    d_o = d_out * tanh_c * o * (_ONE - o)
    write(d_c, 0, d_state * f)
    write_pair(d_rows, 0, d_i, d_f)
    write_pair(d_rows, 2 * LANES, d_g, d_o)
    return d_i, d_f, d_g, d_o


@inline
def _gate_gradients(number, gates, c_old, c_new, d_h, d_h_row, d_y, d_y_row, has_y, share, d_c, d_rows, d_row,
                    d_bias):
    """`_gate_gradient` of a block's samples; the gradient of the bias is added to d_bias."""
    b_i, b_f = read(d_bias, 0), read(d_bias, LANES)
    b_g, b_o = read(d_bias, 2 * LANES), read(d_bias, 3 * LANES)
    fours = number - number % 4
    for n in range(0, fours, 4):
        cell = n * LANES
        t0, t1, t2, t3 = tanhs(read(c_new, cell), read(c_new, cell + LANES), read(c_new, cell + 2 * LANES),
                               read(c_new, cell + 3 * LANES), gates)
        o0, o1 = read(d_h, n * d_h_row), read(d_h, (n + 1) * d_h_row)
        o2, o3 = read(d_h, (n + 2) * d_h_row), read(d_h, (n + 3) * d_h_row)
        if has_y:
            o0 = o0 + read(d_y, n * d_y_row) * share
            o1 = o1 + read(d_y, (n + 1) * d_y_row) * share
            o2 = o2 + read(d_y, (n + 2) * d_y_row) * share
            o3 = o3 + read(d_y, (n + 3) * d_y_row) * share
        i0, f0, g0, q0 = _gate_gradient(pointer(gates, n * GROUP), pointer(c_old, cell), t0, o0,
                                        pointer(d_c, cell), pointer(d_rows, n * d_row))
        i1, f1, g1, q1 = _gate_gradient(pointer(gates, (n + 1) * GROUP), pointer(c_old, cell + LANES), t1, o1,
                                        pointer(d_c, cell + LANES), pointer(d_rows, (n + 1) * d_row))
        i2, f2, g2, q2 = _gate_gradient(pointer(gates, (n + 2) * GROUP), pointer(c_old, cell + 2 * LANES), t2, o2,
                                        pointer(d_c, cell + 2 * LANES), pointer(d_rows, (n + 2) * d_row))
        i3, f3, g3, q3 = _gate_gradient(pointer(gates, (n + 3) * GROUP), pointer(c_old, cell + 3 * LANES), t3, o3,
                                        pointer(d_c, cell + 3 * LANES), pointer(d_rows, (n + 3) * d_row))
        b_i, b_f = b_i + i0 + i1 + (i2 + i3), b_f + f0 + f1 + (f2 + f3)
        b_g, b_o = b_g + g0 + g1 + (g2 + g3), b_o + q0 + q1 + (q2 + q3)
    for n in range(fours, number):
        c = read(c_new, n * LANES)
        t0, _, _, _ = tanhs(c, c, c, c, gates)
        o0 = read(d_h, n * d_h_row)
        if has_y:
            o0 = o0 + read(d_y, n * d_y_row) * share
        i0, f0, g0, q0 = _gate_gradient(pointer(gates, n * GROUP), pointer(c_old, n * LANES), t0, o0,
                                        pointer(d_c, n * LANES), pointer(d_rows, n * d_row))
        b_i, b_f, b_g, b_o = b_i + i0, b_f + f0, b_g + g0, b_o + q0
    write(d_bias, 0, b_i)
    write(d_bias, LANES, b_f)
    write(d_bias, 2 * LANES, b_g)
    write(d_bias, 3 * LANES, b_o)


@inline
def _gate_gradients_within(mask, mask_row, d_past, number, gates, c_old, c_new, d_h, d_h_row, d_y, d_y_row, has_y,
                           returns_end, share, d_c, d_rows, d_row, d_bias):
    """The same for samples that may have ended: there, d_h passes by the products to earlier steps in d_past."""
    for n in range(number):
        past = read(d_past, n * LANES) + read(d_h, n * d_h_row)
        if mask[n * mask_row] == 0:
            if has_y and returns_end:
                past = past + read(d_y, n * d_y_row)
            write(d_past, n * LANES, past)
            for v in range(0, GROUP, LANES):
                write(d_rows, n * d_row + v, broadcast(_ZERO))
        else:
            write(d_h, n * d_h_row, past)
            write(d_past, n * LANES, broadcast(_ZERO))
            _gate_gradients(1, pointer(gates, n * GROUP), pointer(c_old, n * LANES), pointer(c_new, n * LANES),
                            pointer(d_h, n * d_h_row), d_h_row, pointer(d_y, n * d_y_row), d_y_row, has_y, share,
                            pointer(d_c, n * LANES), pointer(d_rows, n * d_row), d_row, d_bias)


@inline
def _prefetch_backward(number, gates, c_old, d_y, d_y_row, has_y):
    for n in range(number):
        prefetch(gates, n * GROUP, GROUP)
        prefetch(c_old, n * LANES, LANES)
        if has_y:
            prefetch(d_y, n * d_y_row, LANES)


@inline
def _add_input_gradients(d_inputs, width, start, number, t, is_first, d_x):
    """Write a step's gradients of the inputs to d_x, or add them where the other direction was before."""
    _, time, features = d_x.shape
    place, whole = pointer(d_x, (start, t, 0)), features // LANES * LANES
    for n in range(number):
        i = n * time * features
        for k in range(0, whole, LANES):
            value = read(d_inputs, n * width + k)
            write(place, i + k, value if is_first else value + read(place, i + k))
        if whole < features:
            value = read(d_inputs, n * width + whole)
            if not is_first:
                value = value + read_some(place, i + whole, features - whole)
            write_some(place, i + whole, value, features - whole)


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
    block, width = block_rows(gates), padded(x.shape[2])
    depth = steps[0] * words_in(gates, block)
    d_h, d_c = aligned(block * cells, d_bias), aligned(block * cells, d_bias)
    d_past = aligned(block * cells, d_bias)
    d_inputs = aligned(block * width, d_bias)
    d_rows = aligned(block * columns, gates).reshape((block, columns))
    x_rows = aligned(block * width, gates)
    left = as_words(aligned((cells + width) * depth * values_in_word(gates), gates))
    right = as_words(aligned(depth * columns * values_in_word(gates), gates))
    if batch % block > 0:
        right[:] = 0
    d_bias[:] = 0
    d_weights[:] = 0
    for d in range(2):
        for start in range(0, batch, block):
            number = min(block, batch - start)
            d_h[:] = 0
            d_c[:] = 0
            d_past[:] = 0
            _run_steps_back(d, steps, start, number, returns, from_zero, x, weights, gates, h_kept, c_kept, mask,
                            d_y, d_h, d_c, d_past, d_inputs, d_rows, x_rows, left, right, depth, d_bias, d_x)
            in_step = words_in(gates, number)
            # Before step 0 the states are zero, if they are not given.
            skip = in_step if from_zero else 0
            _add_weight_gradients(d, skip, steps[d] * in_step, depth, x.shape[2], left, right, d_rows, d_weights)
            if not from_zero:
                for n in range(number):
                    for k in range(0, cells, LANES):
                        cell, place = k * block + n * LANES, (d, start + n, k)
                        write(d_h0, place, read(d_h, (n * cells + k,)) + read(d_past, (cell,)))
                        write(d_c0, place, read(d_c, (cell,)))


@compiled
def _run_steps_back(d, steps, start, number, returns, from_zero, x, weights, gates, h_kept, c_kept, mask, d_y, d_h,
                    d_c, d_past, d_inputs, d_rows, x_rows, left, right, depth, d_bias, d_x):
    """The steps of one direction for a block, last to first.

    Fills left and right, which have depth words, for the weights' gradients.
    """
    _, time, features = x.shape
    block, columns = d_rows.shape
    cells, width, in_word = columns // GATES, padded(features), values_in_word(d_rows)
    rows, in_step = whole_rows(weights, number), words_in(d_rows, number)
    row, word = left_strides(d_rows, cells + width, depth)
    d_y_row = d_y.shape[1] * d_y.shape[2]
    share = _ONE / np.float32(steps[0]) if returns == MEAN else _ONE
    zeros_array = np.zeros(max(cells, width), np.float32)
    zeros, d_operand = pointer(zeros_array, (0,)), pointer(as_words(d_rows), (0, 0))
    gates_start, h_start, c_start = (pointer(gates, (0, 0, 0, 0)), pointer(h_kept, (0, 0, 0, 0)),
                                     pointer(c_kept, (0, 0, 0, 0)))
    for step in range(steps[d] - 1, -1, -1):
        t, has_y = _place(d, step, time), returns != END or step + 1 == steps[d]
        y_t, t_before = t if returns == SEQUENCE else 0, _place(d, max(step - 1, 0), time)
        kept, kept_new = _kept(d, step, start, h_kept), _kept(d, step + 1, start, h_kept)
        kept_before = _kept(d, max(step - 1, 0), start, h_kept)
        for k in range(0, cells, LANES):
            if k + LANES < cells:
                ahead, ahead_y = kept + (k + LANES) * number, pointer(d_y, (start, y_t, d * cells + k + LANES))
            else:
                ahead = kept_before
                ahead_y = pointer(d_y, (start, t_before if returns == SEQUENCE else 0, d * cells))
            _prefetch_backward(number, pointer(gates_start, GATES * ahead), pointer(c_start, ahead), ahead_y, d_y_row,
                               has_y)
            gates_k, d_y_k = pointer(gates_start, GATES * (kept + k * number)), pointer(d_y, (start, y_t, d * cells + k))
            c_old, c_new = pointer(c_start, kept + k * number), pointer(c_start, kept_new + k * number)
            d_h_k, d_c_k = pointer(d_h, (k,)), pointer(d_c, (k * block,))
            d_rows_k, d_bias_k = pointer(d_rows, (0, GATES * k)), pointer(d_bias, (d, GATES * k))
            if len(mask) == 0:
                _gate_gradients(number, gates_k, c_old, c_new, d_h_k, cells, d_y_k, d_y_row, has_y, share, d_c_k,
                                d_rows_k, columns, d_bias_k)
            else:
                _gate_gradients_within(pointer(mask, (start, t)), time, pointer(d_past, (k * block,)), number, gates_k,
                                       c_old, c_new, d_h_k, cells, d_y_k, d_y_row, has_y, returns == END, share, d_c_k,
                                       d_rows_k, columns, d_bias_k)
        x_t, x_row = pointer(x, (start, t, 0)), time * features
        x_block = pointer(x_rows, (0,))
        for k in range(0, features, LANES):
            for n in range(number):
                value = (read(x_t, n * x_row + k) if k + LANES <= features
                         else read_some(x_t, n * x_row + k, features - k))
                write(x_block, k * number + n * LANES, value)
        first = step * in_step * word
        pack_columns(pointer(h_start, kept), cells // LANES, number, pointer(left, (first,)), row, word)
        pack_columns(x_block, width // LANES, number, pointer(left, (cells * row + first,)), row, word)
        pack_rows(d_rows[:number], step * in_step, depth, right)
        if step > 0 or not from_zero:
            multiply(d_operand, columns // in_word, 1, rows, columns // in_word, pointer(weights, (d, 0)), 0,
                     columns // in_word, zeros, pointer(d_h, (0,)), cells, cells)
        if len(d_x) > 0:
            multiply(d_operand, columns // in_word, 1, rows, columns // in_word,
                     pointer(weights, (d, columns // in_word * cells)), 0, columns // in_word, zeros,
                     pointer(d_inputs, (0,)), width, width)
            _add_input_gradients(pointer(d_inputs, (0,)), width, start, number, t, d == 0 or t >= steps[0], d_x)
    # Numba frees an array after its last use.
    zeros_array[0] = 0


@compiled
def _add_weight_gradients(d, skip, used, depth, features, left, right, d_rows, d_weights):
    """Add the products of operands and gates' gradients, summed over samples and steps.

    Args:
        skip: words at the beginning that are 0 in the hidden states' part; used: words that are filled.
    """
    columns, width = d_rows.shape[1], padded(features)
    cells = columns // GATES
    row, word = left_strides(d_rows, cells + width, depth)
    multiply(pointer(left, (skip * word,)), row, word, cells, used - skip, pointer(right, (0,)), skip, depth, None,
             pointer(d_weights, (d, 0, 0)), columns, columns)
    multiply(pointer(left, (cells * row,)), row, word, whole_rows(left, features), used, pointer(right, (0,)), 0,
             depth, None, pointer(d_weights, (d, cells, 0)), columns, columns)
