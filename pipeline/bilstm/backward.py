"""The gradient of the recurrence, for a block of samples at a time: see `recurrence.py`."""

import numpy as np

from pipeline.bilstm.activations import tanhs
from pipeline.bilstm.jit import compiled, inline
from pipeline.bilstm.matmul import (
    as_words,
    block_rows,
    multiply,
    padded,
    values_in_word,
    whole_rows,
    words_in,
)
from pipeline.bilstm.packing import left_strides, pack_columns, pack_rows
from pipeline.bilstm.recurrence import END, GATES, GROUP, MEAN, ONE, SEQUENCE, ZERO, kept_at, time_of
from pipeline.bilstm.simd import (
    LANES,
    aligned,
    broadcast,
    pointer,
    prefetch,
    read,
    read_some,
    write,
    write_pair,
    write_some,
)


@inline
def _gate_gradient(gates, c_old, tanh_c, d_out, d_c, d_rows):
    """The gradients of the gates' arguments of one sample's group of cells; d_c goes back by a step."""
    i, f, g, o = read(gates, 0), read(gates, LANES), read(gates, 2 * LANES), read(gates, 3 * LANES)
    d_state = read(d_c, 0) + d_out * o * (ONE - tanh_c * tanh_c)
    d_i = d_state * g * i * (ONE - i)
    d_f = d_state * read(c_old, 0) * f * (ONE - f)
    d_g = d_state * i * (ONE - g * g)
    d_o = d_out * tanh_c * o * (ONE - o)
    write(d_c, 0, d_state * f)
    write_pair(d_rows, 0, d_i, d_f)
    write_pair(d_rows, 2 * LANES, d_g, d_o)
    return d_i, d_f, d_g, d_o


@inline
def _gate_gradients(
    number, gates, c_old, c_new, d_h, d_h_row, d_y, d_y_row, has_y, share, d_c, d_rows, d_row, d_bias
):
    """`_gate_gradient` of a block's samples; the gradient of the bias is added to d_bias."""
    b_i, b_f = read(d_bias, 0), read(d_bias, LANES)
    b_g, b_o = read(d_bias, 2 * LANES), read(d_bias, 3 * LANES)
    fours = number - number % 4
    for n in range(0, fours, 4):
        cell = n * LANES
        t0, t1, t2, t3 = tanhs(
            read(c_new, cell),
            read(c_new, cell + LANES),
            read(c_new, cell + 2 * LANES),
            read(c_new, cell + 3 * LANES),
            gates,
        )
        o0, o1 = read(d_h, n * d_h_row), read(d_h, (n + 1) * d_h_row)
        o2, o3 = read(d_h, (n + 2) * d_h_row), read(d_h, (n + 3) * d_h_row)
        if has_y:
            o0 = o0 + read(d_y, n * d_y_row) * share
            o1 = o1 + read(d_y, (n + 1) * d_y_row) * share
            o2 = o2 + read(d_y, (n + 2) * d_y_row) * share
            o3 = o3 + read(d_y, (n + 3) * d_y_row) * share
        i0, f0, g0, q0 = _gate_gradient(
            pointer(gates, n * GROUP),
            pointer(c_old, cell),
            t0,
            o0,
            pointer(d_c, cell),
            pointer(d_rows, n * d_row),
        )
        i1, f1, g1, q1 = _gate_gradient(
            pointer(gates, (n + 1) * GROUP),
            pointer(c_old, cell + LANES),
            t1,
            o1,
            pointer(d_c, cell + LANES),
            pointer(d_rows, (n + 1) * d_row),
        )
        i2, f2, g2, q2 = _gate_gradient(
            pointer(gates, (n + 2) * GROUP),
            pointer(c_old, cell + 2 * LANES),
            t2,
            o2,
            pointer(d_c, cell + 2 * LANES),
            pointer(d_rows, (n + 2) * d_row),
        )
        i3, f3, g3, q3 = _gate_gradient(
            pointer(gates, (n + 3) * GROUP),
            pointer(c_old, cell + 3 * LANES),
            t3,
            o3,
            pointer(d_c, cell + 3 * LANES),
            pointer(d_rows, (n + 3) * d_row),
        )
        b_i, b_f = b_i + i0 + i1 + (i2 + i3), b_f + f0 + f1 + (f2 + f3)
        b_g, b_o = b_g + g0 + g1 + (g2 + g3), b_o + q0 + q1 + (q2 + q3)
    for n in range(fours, number):
        c = read(c_new, n * LANES)
        t0, _, _, _ = tanhs(c, c, c, c, gates)
        o0 = read(d_h, n * d_h_row)
        if has_y:
            o0 = o0 + read(d_y, n * d_y_row) * share
        i0, f0, g0, q0 = _gate_gradient(
            pointer(gates, n * GROUP),
            pointer(c_old, n * LANES),
            t0,
            o0,
            pointer(d_c, n * LANES),
            pointer(d_rows, n * d_row),
        )
        b_i, b_f, b_g, b_o = b_i + i0, b_f + f0, b_g + g0, b_o + q0
    write(d_bias, 0, b_i)
    write(d_bias, LANES, b_f)
    write(d_bias, 2 * LANES, b_g)
    write(d_bias, 3 * LANES, b_o)


@inline
def _gate_gradients_within(
    mask,
    mask_row,
    d_past,
    number,
    gates,
    c_old,
    c_new,
    d_h,
    d_h_row,
    d_y,
    d_y_row,
    has_y,
    returns_end,
    share,
    d_c,
    d_rows,
    d_row,
    d_bias,
):
    """The same for samples that may have ended: their d_h reaches earlier steps in d_past alone."""
    for n in range(number):
        past = read(d_past, n * LANES) + read(d_h, n * d_h_row)
        if mask[n * mask_row] == 0:
            if has_y and returns_end:
                past = past + read(d_y, n * d_y_row)
            write(d_past, n * LANES, past)
            for v in range(0, GROUP, LANES):
                write(d_rows, n * d_row + v, broadcast(ZERO))
        else:
            write(d_h, n * d_h_row, past)
            write(d_past, n * LANES, broadcast(ZERO))
            _gate_gradients(
                1,
                pointer(gates, n * GROUP),
                pointer(c_old, n * LANES),
                pointer(c_new, n * LANES),
                pointer(d_h, n * d_h_row),
                d_h_row,
                pointer(d_y, n * d_y_row),
                d_y_row,
                has_y,
                share,
                pointer(d_c, n * LANES),
                pointer(d_rows, n * d_row),
                d_row,
                d_bias,
            )


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
def backward(
    steps,
    returns,
    from_zero,
    x,
    weights,
    gates,
    h_kept,
    c_kept,
    mask,
    d_y,
    d_h0,
    d_c0,
    d_bias,
    d_weights,
    d_x,
):
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
            _run_steps_back(
                d,
                steps,
                start,
                number,
                returns,
                from_zero,
                x,
                weights,
                gates,
                h_kept,
                c_kept,
                mask,
                d_y,
                d_h,
                d_c,
                d_past,
                d_inputs,
                d_rows,
                x_rows,
                left,
                right,
                depth,
                d_bias,
                d_x,
            )
            in_step = words_in(gates, number)
            # Before step 0 the states are zero, if they are not given.
            skip = in_step if from_zero else 0
            _add_weight_gradients(
                d, skip, steps[d] * in_step, depth, x.shape[2], left, right, d_rows, d_weights
            )
            if not from_zero:
                for n in range(number):
                    for k in range(0, cells, LANES):
                        cell, place = k * block + n * LANES, (d, start + n, k)
                        write(d_h0, place, read(d_h, (n * cells + k,)) + read(d_past, (cell,)))
                        write(d_c0, place, read(d_c, (cell,)))


@compiled
def _run_steps_back(
    d,
    steps,
    start,
    number,
    returns,
    from_zero,
    x,
    weights,
    gates,
    h_kept,
    c_kept,
    mask,
    d_y,
    d_h,
    d_c,
    d_past,
    d_inputs,
    d_rows,
    x_rows,
    left,
    right,
    depth,
    d_bias,
    d_x,
):
    """The steps of one direction for a block, last to first.

    Fills left and right, which have depth words, for the weights' gradients.
    """
    _, time, features = x.shape
    block, columns = d_rows.shape
    cells, width, in_word = columns // GATES, padded(features), values_in_word(d_rows)
    rows, in_step = whole_rows(weights, number), words_in(d_rows, number)
    row, word = left_strides(d_rows, cells + width, depth)
    d_y_row = d_y.shape[1] * d_y.shape[2]
    share = ONE / np.float32(steps[0]) if returns == MEAN else ONE
    zeros_array = np.zeros(max(cells, width), np.float32)
    zeros, d_operand = pointer(zeros_array, (0,)), pointer(as_words(d_rows), (0, 0))
    gates_start, h_start, c_start = (
        pointer(gates, (0, 0, 0, 0)),
        pointer(h_kept, (0, 0, 0, 0)),
        pointer(c_kept, (0, 0, 0, 0)),
    )
    for step in range(steps[d] - 1, -1, -1):
        t, has_y = time_of(d, step, time), returns != END or step + 1 == steps[d]
        y_t, t_before = t if returns == SEQUENCE else 0, time_of(d, max(step - 1, 0), time)
        kept, kept_new = kept_at(d, step, start, h_kept), kept_at(d, step + 1, start, h_kept)
        kept_before = kept_at(d, max(step - 1, 0), start, h_kept)
        for k in range(0, cells, LANES):
            if k + LANES < cells:
                ahead, ahead_y = (
                    kept + (k + LANES) * number,
                    pointer(d_y, (start, y_t, d * cells + k + LANES)),
                )
            else:
                ahead = kept_before
                ahead_y = pointer(d_y, (start, t_before if returns == SEQUENCE else 0, d * cells))
            _prefetch_backward(
                number, pointer(gates_start, GATES * ahead), pointer(c_start, ahead), ahead_y, d_y_row, has_y
            )
            gates_k, d_y_k = (
                pointer(gates_start, GATES * (kept + k * number)),
                pointer(d_y, (start, y_t, d * cells + k)),
            )
            c_old, c_new = pointer(c_start, kept + k * number), pointer(c_start, kept_new + k * number)
            d_h_k, d_c_k = pointer(d_h, (k,)), pointer(d_c, (k * block,))
            d_rows_k, d_bias_k = pointer(d_rows, (0, GATES * k)), pointer(d_bias, (d, GATES * k))
            if len(mask) == 0:
                _gate_gradients(
                    number,
                    gates_k,
                    c_old,
                    c_new,
                    d_h_k,
                    cells,
                    d_y_k,
                    d_y_row,
                    has_y,
                    share,
                    d_c_k,
                    d_rows_k,
                    columns,
                    d_bias_k,
                )
            else:
                _gate_gradients_within(
                    pointer(mask, (start, t)),
                    time,
                    pointer(d_past, (k * block,)),
                    number,
                    gates_k,
                    c_old,
                    c_new,
                    d_h_k,
                    cells,
                    d_y_k,
                    d_y_row,
                    has_y,
                    returns == END,
                    share,
                    d_c_k,
                    d_rows_k,
                    columns,
                    d_bias_k,
                )
        x_t, x_row = pointer(x, (start, t, 0)), time * features
        x_block = pointer(x_rows, (0,))
        for k in range(0, features, LANES):
            for n in range(number):
                value = (
                    read(x_t, n * x_row + k)
                    if k + LANES <= features
                    else read_some(x_t, n * x_row + k, features - k)
                )
                write(x_block, k * number + n * LANES, value)
        first = step * in_step * word
        pack_columns(pointer(h_start, kept), cells // LANES, number, pointer(left, (first,)), row, word)
        pack_columns(x_block, width // LANES, number, pointer(left, (cells * row + first,)), row, word)
        pack_rows(d_rows[:number], step * in_step, depth, right)
        if step > 0 or not from_zero:
            multiply(
                d_operand,
                columns // in_word,
                1,
                rows,
                columns // in_word,
                pointer(weights, (d, 0)),
                0,
                columns // in_word,
                zeros,
                pointer(d_h, (0,)),
                cells,
                cells,
            )
        if len(d_x) > 0:
            multiply(
                d_operand,
                columns // in_word,
                1,
                rows,
                columns // in_word,
                pointer(weights, (d, columns // in_word * cells)),
                0,
                columns // in_word,
                zeros,
                pointer(d_inputs, (0,)),
                width,
                width,
            )
            _add_input_gradients(
                pointer(d_inputs, (0,)), width, start, number, t, d == 0 or t >= steps[0], d_x
            )
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
    multiply(
        pointer(left, (skip * word,)),
        row,
        word,
        cells,
        used - skip,
        pointer(right, (0,)),
        skip,
        depth,
        None,
        pointer(d_weights, (d, 0, 0)),
        columns,
        columns,
    )
    multiply(
        pointer(left, (cells * row,)),
        row,
        word,
        whole_rows(left, features),
        used,
        pointer(right, (0,)),
        0,
        depth,
        None,
        pointer(d_weights, (d, cells, 0)),
        columns,
        columns,
    )
