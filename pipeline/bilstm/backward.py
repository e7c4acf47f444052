"""The gradient of the recurrence, for a block of samples at a time: see `recurrence.py`."""

from typing import NamedTuple

import numpy as np

from pipeline.bilstm.activations import tanhs
from pipeline.bilstm.jit import compiled, inline
from pipeline.bilstm.matmul import (
    Left,
    Panels,
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


class _Scratch(NamedTuple):
    """Memory of a block.

    Attributes:
        d_h: float32 `(block, cells)`.
        d_c, d_past: float32 `(cells / LANES, block, LANES)`: of the cell states; of the last hidden states of
            samples that have ended.
        d_gates: one step's gradients of the gates' arguments, values `(block, 4 * cells)`.
        d_inputs: float32 `(block, padded features)`; x: values of one step's inputs, grouped as d_c.
        left, right: the operands of the weights' gradients, words, filled step by step.
        zeros: float32.
    """

    d_h: np.ndarray
    d_c: np.ndarray
    d_past: np.ndarray
    d_gates: np.ndarray
    d_inputs: np.ndarray
    x: np.ndarray
    left: np.ndarray
    right: np.ndarray
    zeros: np.ndarray


class _How(NamedTuple):
    """What a step does, and the distance from one sample to the next in its arrays."""

    number: int
    has_y: bool
    end: bool
    share: float
    d_h_row: int
    d_y_row: int
    d_gates_row: int
    mask_row: int


class _Group(NamedTuple):
    """Pointers to a group of cells of the block's first sample."""

    gates: int
    c_old: int
    c_new: int
    d_h: int
    d_y: int
    d_c: int
    d_past: int
    d_gates: int
    d_bias: int
    mask: int


@inline
def _hidden_gradient(group, how, n):
    d_h = read(group.d_h, n * how.d_h_row)
    return d_h + read(group.d_y, n * how.d_y_row) * how.share if how.has_y else d_h


@inline
def _gate_gradient(group, how, n, tanh_c, d_h):
    """The gradients of the gates' arguments of a sample; those of the cell states go back by a step."""
    gate, cell, out = n * GROUP, n * LANES, n * how.d_gates_row
    i, f = read(group.gates, gate), read(group.gates, gate + LANES)
    g, o = read(group.gates, gate + 2 * LANES), read(group.gates, gate + 3 * LANES)
    d_c = read(group.d_c, cell) + d_h * o * (ONE - tanh_c * tanh_c)
    d_i = d_c * g * i * (ONE - i)
    d_f = d_c * read(group.c_old, cell) * f * (ONE - f)
    d_g = d_c * i * (ONE - g * g)
    d_o = d_h * tanh_c * o * (ONE - o)
    write(group.d_c, cell, d_c * f)
    write_pair(group.d_gates, out, d_i, d_f)
    write_pair(group.d_gates, out + 2 * LANES, d_g, d_o)
    return d_i, d_f, d_g, d_o


@inline
def _gate_gradients(group, how, first, last):
    """`_gate_gradient` of some samples; the gradient of the bias is added to d_bias."""
    b_i, b_f = read(group.d_bias, 0), read(group.d_bias, LANES)
    b_g, b_o = read(group.d_bias, 2 * LANES), read(group.d_bias, 3 * LANES)
    fours = last - (last - first) % 4
    for n in range(first, fours, 4):
        cell = n * LANES
        t0, t1, t2, t3 = tanhs(
            read(group.c_new, cell),
            read(group.c_new, cell + LANES),
            read(group.c_new, cell + 2 * LANES),
            read(group.c_new, cell + 3 * LANES),
            group.gates,
        )
        # All are read before anything is written, which the compiler would not dare to reorder.
        h0, h1 = _hidden_gradient(group, how, n), _hidden_gradient(group, how, n + 1)
        h2, h3 = _hidden_gradient(group, how, n + 2), _hidden_gradient(group, how, n + 3)
        i0, f0, g0, o0 = _gate_gradient(group, how, n, t0, h0)
        i1, f1, g1, o1 = _gate_gradient(group, how, n + 1, t1, h1)
        i2, f2, g2, o2 = _gate_gradient(group, how, n + 2, t2, h2)
        i3, f3, g3, o3 = _gate_gradient(group, how, n + 3, t3, h3)
        b_i, b_f = b_i + i0 + i1 + (i2 + i3), b_f + f0 + f1 + (f2 + f3)
        b_g, b_o = b_g + g0 + g1 + (g2 + g3), b_o + o0 + o1 + (o2 + o3)
    for n in range(fours, last):
        c = read(group.c_new, n * LANES)
        t0, _, _, _ = tanhs(c, c, c, c, group.gates)
        i0, f0, g0, o0 = _gate_gradient(group, how, n, t0, _hidden_gradient(group, how, n))
        b_i, b_f, b_g, b_o = b_i + i0, b_f + f0, b_g + g0, b_o + o0
    write(group.d_bias, 0, b_i)
    write(group.d_bias, LANES, b_f)
    write(group.d_bias, 2 * LANES, b_g)
    write(group.d_bias, 3 * LANES, b_o)


@inline
def _masked_gate_gradients(group, how):
    """`_gate_gradients` of samples that may have ended: their d_h reaches earlier steps in d_past alone."""
    for n in range(how.number):
        past = read(group.d_past, n * LANES) + read(group.d_h, n * how.d_h_row)
        if group.mask[n * how.mask_row] == 0:
            if how.has_y and how.end:
                past = past + read(group.d_y, n * how.d_y_row)
            write(group.d_past, n * LANES, past)
            for v in range(0, GROUP, LANES):
                write(group.d_gates, n * how.d_gates_row + v, broadcast(ZERO))
        else:
            write(group.d_h, n * how.d_h_row, past)
            write(group.d_past, n * LANES, broadcast(ZERO))
            _gate_gradients(group, how, n, n + 1)


@inline
def _prefetch(how, gates, c_old, d_y):
    for n in range(how.number):
        prefetch(gates, n * GROUP, GROUP)
        prefetch(c_old, n * LANES, LANES)
        if how.has_y:
            prefetch(d_y, n * how.d_y_row, LANES)


@inline
def _pack_operands(scratch, step, number, h, x, x_row, features):
    """Pack a step's operands of the weights' gradients: states and inputs, and the gates' gradients."""
    columns = scratch.d_gates.shape[1]
    cells, width, depth = columns // GATES, padded(features), scratch.right.size // columns
    row, word = left_strides(scratch.d_gates, cells + width, depth)
    in_step, x_block = words_in(scratch.d_gates, number), pointer(scratch.x, (0,))
    for k in range(0, features, LANES):
        for n in range(number):
            value = (
                read(x, n * x_row + k) if k + LANES <= features else read_some(x, n * x_row + k, features - k)
            )
            write(x_block, k * number + n * LANES, value)
    left = pointer(scratch.left, (step * in_step * word,))
    pack_columns(h, cells // LANES, number, left, row, word)
    pack_columns(x_block, width // LANES, number, pointer(left, cells * row), row, word)
    pack_rows(scratch.d_gates[:number], step * in_step, depth, scratch.right)


@compiled
def _add_input_gradients(d_inputs, start, number, t, is_first, d_x):
    """Write a step's gradients of the inputs to d_x, or add them where the other direction was before."""
    _, time, features = d_x.shape
    width, whole = padded(features), features // LANES * LANES
    place, source = pointer(d_x, (start, t, 0)), pointer(d_inputs, (0,))
    for n in range(number):
        i = n * time * features
        for k in range(0, whole, LANES):
            value = read(source, n * width + k)
            write(place, i + k, value if is_first else value + read(place, i + k))
        if whole < features:
            value = read(source, n * width + whole)
            if not is_first:
                value = value + read_some(place, i + whole, features - whole)
            write_some(place, i + whole, value, features - whole)


@compiled
def backward(plan, x, weights, kept, mask, d_y, d_h0, d_c0, d_bias, d_weights, d_x):
    """The gradient of `forward`; all arguments from `d_h0` on are written.

    Args:
        plan, x, kept, mask: as in `forward`.
        weights: packed transposed, of each direction: words of `(4 * cells, cells)` for the states, then of
            `(4 * cells, features)`, padded, for the inputs.
        d_y: of y.
        d_h0, d_c0: float32 `(2, batch, cells)`; `(0, ...)` if the states began at zero.
        d_bias: float32 `(2, 4 * cells)`.
        d_weights: float32 `(2, cells + padded features, 4 * cells)`.
        d_x: float32 `(batch, time, features)`, or `(0, ...)` to leave it out.
    """
    _, _, batch, cells = kept.h.shape
    block, scratch = block_rows(kept.gates), _scratch(plan, x.shape[2], kept, d_bias)
    if batch % block > 0:
        scratch.right[:] = 0
    d_bias[:] = 0
    d_weights[:] = 0
    for d in range(2):
        for start in range(0, batch, block):
            number = min(block, batch - start)
            scratch.d_h[:] = 0
            scratch.d_c[:] = 0
            scratch.d_past[:] = 0
            _run_steps_back(d, start, number, plan, x, weights, kept, mask, d_y, scratch, d_bias, d_x)
            in_step = words_in(kept.gates, number)
            # Before step 0 the states are zero, if they are not given.
            skip = in_step if plan.from_zero else 0
            _add_weight_gradients(skip, plan.steps[d] * in_step, x.shape[2], scratch, d_weights[d])
            if not plan.from_zero:
                for n in range(number):
                    for k in range(0, cells, LANES):
                        cell, place = k * block + n * LANES, (d, start + n, k)
                        d_h = read(scratch.d_h, (n * cells + k,)) + read(scratch.d_past, (cell,))
                        write(d_h0, place, d_h)
                        write(d_c0, place, read(scratch.d_c, (cell,)))


@compiled
def _scratch(plan, features, kept, floats):
    cells, columns = kept.h.shape[3], kept.gates.shape[3]
    block, width = block_rows(kept.gates), padded(features)
    depth = plan.steps[0] * words_in(kept.gates, block)
    values = depth * values_in_word(kept.gates)
    return _Scratch(
        aligned(block * cells, floats),
        aligned(block * cells, floats),
        aligned(block * cells, floats),
        aligned(block * columns, kept.gates).reshape((block, columns)),
        aligned(block * width, floats),
        aligned(block * width, kept.gates),
        as_words(aligned((cells + width) * values, kept.gates)),
        as_words(aligned(columns * values, kept.gates)),
        np.zeros(max(cells, width), np.float32),
    )


@compiled
def _run_steps_back(d, start, number, plan, x, weights, kept, mask, d_y, scratch, d_bias, d_x):
    """The steps of one direction for a block, last to first; fills the operands of the weights' gradients."""
    _, time, features = x.shape
    block, columns = scratch.d_gates.shape
    cells, d_y_row = columns // GATES, d_y.shape[1] * d_y.shape[2]
    share = ONE / np.float32(plan.steps[0]) if plan.returns == MEAN else ONE
    # Not in the loops: Numba counts references to an array whenever it is taken out of a tuple.
    h_kept, gates_start = kept.h, pointer(kept.gates, (0, 0, 0, 0))
    h_start, c_start = pointer(h_kept, (0, 0, 0, 0)), pointer(kept.c, (0, 0, 0, 0))
    d_h, d_c, d_past = pointer(scratch.d_h, (0,)), pointer(scratch.d_c, (0,)), pointer(scratch.d_past, (0,))
    d_gates = pointer(scratch.d_gates, (0, 0))
    for step in range(plan.steps[d] - 1, -1, -1):
        has_y = plan.returns != END or step + 1 == plan.steps[d]
        how = _How(number, has_y, plan.returns == END, share, cells, d_y_row, columns, time)
        t, t_before = time_of(d, step, time), time_of(d, max(step - 1, 0), time)
        y_t, y_before = (t, t_before) if plan.returns == SEQUENCE else (0, 0)
        old, new = kept_at(d, step, start, h_kept), kept_at(d, step + 1, start, h_kept)
        before = kept_at(d, max(step - 1, 0), start, h_kept)
        for k in range(0, cells, LANES):
            group = _Group(
                pointer(gates_start, GATES * (old + k * number)),
                pointer(c_start, old + k * number),
                pointer(c_start, new + k * number),
                pointer(d_h, k),
                pointer(d_y, (start, y_t, d * cells + k)),
                pointer(d_c, k * block),
                pointer(d_past, k * block),
                pointer(d_gates, GATES * k),
                pointer(d_bias, (d, GATES * k)),
                pointer(mask, (start, t)),
            )
            ahead, d_y_ahead = before, pointer(d_y, (start, y_before, d * cells))
            if k + LANES < cells:
                ahead, d_y_ahead = old + (k + LANES) * number, pointer(group.d_y, LANES)
            _prefetch(how, pointer(gates_start, GATES * ahead), pointer(c_start, ahead), d_y_ahead)
            if len(mask) == 0:
                _gate_gradients(group, how, 0, number)
            else:
                _masked_gate_gradients(group, how)
        _pack_operands(
            scratch, step, number, pointer(h_start, old), pointer(x, (start, t, 0)), time * features, features
        )
        if step > 0 or not plan.from_zero:
            _multiply_gates(scratch, number, pointer(weights, (d, 0)), scratch.d_h, cells)
        if len(d_x) > 0:
            of_inputs, width = columns // values_in_word(kept.gates) * cells, padded(features)
            _multiply_gates(scratch, number, pointer(weights, (d, of_inputs)), scratch.d_inputs, width)
            _add_input_gradients(scratch.d_inputs, start, number, t, d == 0 or t >= plan.steps[0], d_x)


@inline
def _multiply_gates(scratch, number, weights, out, columns):
    """Write the product of a step's gates' gradients and packed weights to out `(block, columns)`."""
    words = as_words(scratch.d_gates)
    depth = words.shape[1]
    multiply(
        Left(pointer(words, (0, 0)), depth, 1),
        whole_rows(weights, number),
        depth,
        Panels(weights, 0, depth),
        pointer(scratch.zeros, (0,)),
        pointer(out, (0,)),
        columns,
    )


@compiled
def _add_weight_gradients(skip, used, features, scratch, d_weights):
    """Add the products of operands and gates' gradients, summed over samples and steps.

    Args:
        skip: words at the beginning that are 0 in the hidden states' part; used: words that are filled.
    """
    columns = scratch.d_gates.shape[1]
    cells, depth = columns // GATES, scratch.right.size // columns
    row, word = left_strides(scratch.d_gates, cells + padded(features), depth)
    right = pointer(scratch.right, (0,))
    multiply(
        Left(pointer(scratch.left, (skip * word,)), row, word),
        cells,
        used - skip,
        Panels(right, skip, depth),
        None,
        pointer(d_weights, (0, 0)),
        columns,
    )
    multiply(
        Left(pointer(scratch.left, (cells * row,)), row, word),
        whole_rows(scratch.left, features),
        used,
        Panels(right, 0, depth),
        None,
        pointer(d_weights, (cells, 0)),
        columns,
    )
