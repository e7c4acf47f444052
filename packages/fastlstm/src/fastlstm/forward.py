"""The forward pass of the recurrence, for a block of samples at a time: see `recurrence.py`."""

from typing import NamedTuple

import numpy as np

from fastlstm.activations import sigmoid, tanh
from fastlstm.jit import inline, inner
from fastlstm.matmul import (
    Accumulators,
    block_part,
    block_rows,
    multiply,
    round_up,
    state_column,
    state_lhs,
    values_in_word,
    words_in,
)
from fastlstm.recurrence import GATES, LAST, MEAN, ONE, SEQUENCE, ZERO, saved_at, time_of
from fastlstm.simd import (
    LANES,
    SAMPLES,
    TILE,
    WIDE,
    aligned,
    as_words,
    load,
    load_rows,
    load_some,
    load_wide,
    pointer,
    prefetch,
    splat,
    store,
    store_rows,
)

# The sigmoid of this and of its negative are 1 and almost 0.
_SATURATED = np.float32(200)


class _Step(NamedTuple):
    """Settings of a step of a block of samples, and pointers to the first group of cells of the first sample.

    Attributes:
        number, rows: samples in the block, and rounded up to a multiple of SAMPLES.
        save, returns: see `Plan`.
        writes: whether this step writes y.
        share: of a step in the mean.
        y_stride, mask_stride: of samples; a mask_stride of 0 means that there is no mask.
        z: pre-activations of the gates of two groups of cells, float32 `(2, GATES, block, LANES)`.
        c: cell states, float32 `(cells / LANES, block, LANES)`.
        h_old, h: hidden states before and after the step, values in the layout of states.
        others: of the arrays of these names.
    """

    number: int
    rows: int
    save: bool
    returns: int
    writes: bool
    share: float
    y_stride: int
    mask_stride: int
    z: int
    c: int
    h_old: int
    h: int
    y: int
    mask: int
    saved_gates: int
    saved_c: int
    saved_h: int


@inline
def _gates_at(step, k):
    """Pre-activations of the gates of a group of cells; also for the group -LANES."""
    return pointer(step.z, k // LANES % 2 * GATES * block_rows(step.h) * LANES)


@inline
def _update_states(step, k, first, last):
    """Compute the new states of a group of cells of some samples, and y, four samples at a time."""
    z, c, block = _gates_at(step, k), pointer(step.c, k * block_rows(step.h)), block_rows(step.h) * LANES
    h, gates = pointer(step.h, state_column(step.h, k)), pointer(step.saved_gates, GATES * k * step.rows)
    saved_c, saved_h = pointer(step.saved_c, k * step.rows), pointer(step.saved_h, k * step.rows)
    for n in range(first * LANES, last * LANES, WIDE):
        i = sigmoid(load_wide(z, n), step.h)
        f = sigmoid(load_wide(z, block + n), step.h)
        g = tanh(load_wide(z, 2 * block + n), step.h)
        o = sigmoid(load_wide(z, 3 * block + n), step.h)
        c_new = f * load_wide(c, n) + i * g
        h_new = o * tanh(c_new, step.h)
        sample = n // LANES
        store(c, n, c_new)
        store_rows(h, sample * TILE, TILE, (h_new,), SAMPLES)
        if step.save:
            store(gates, n, i)
            store(gates, step.rows * LANES + n, f)
            store(gates, 2 * step.rows * LANES + n, g)
            store(gates, 3 * step.rows * LANES + n, o)
            store(saved_c, n, c_new)
            store(saved_h, n, h_new)
        if step.writes:
            output, y, count = h_new, sample * step.y_stride + k, step.number - sample
            if step.returns == MEAN:
                output = h_new * step.share + load_rows(step.y, y, step.y_stride, count)
            store_rows(step.y, y, step.y_stride, (output,), count)


@inline
def _keep_c_of_masked(step, k, first, last):
    """Set the pre-activations of masked samples so that c stays as it is: f is 1, g is 0."""
    block = block_rows(step.h) * LANES
    for n in range(first, min(last, step.number)):
        if step.mask[n * step.mask_stride] == 0:
            z = pointer(_gates_at(step, k), n * LANES)
            store(z, 0, splat(-_SATURATED))
            store(z, block, splat(_SATURATED))
            store(z, 2 * block, splat(ZERO))


@inline
def _keep_h_of_masked(step, k, first, last):
    """After `_update_states`: masked samples keep h; their output is 0 or the last h."""
    column, group = state_column(step.h, k), k * step.rows
    for n in range(first, min(last, step.number)):
        if step.mask[n * step.mask_stride] == 0:
            h = load(step.h_old, column + n * TILE)
            store(step.h, column + n * TILE, h)
            if step.save:
                store(step.saved_h, group + n * LANES, h)
                store(step.saved_gates, GATES * group + n * LANES, splat(ZERO))  # almost 0 before
            if step.writes:
                store(step.y, n * step.y_stride + k, h if step.returns == LAST else splat(ZERO))


@inline
def _prefetch(step, k, first, last):
    """Prefetch the destinations of a group of cells."""
    for n in range(first, min(last, step.number)):
        if step.writes:
            prefetch(step.y, n * step.y_stride + k, LANES)
        if step.save:
            place = k * step.rows + n * LANES
            prefetch(step.saved_gates, GATES * place, GATES * LANES)
            prefetch(step.saved_c, place, LANES)
            prefetch(step.saved_h, place, LANES)


@inline
def _read_inputs(x, start, number, cells, operands, size):
    """Write a block's inputs to the operands of all steps, beside the hidden states."""
    _, time, features = x.shape
    for t in range(time):
        source, target = pointer(x, (start, t, 0)), pointer(operands, t * size)
        for n in range(number):
            for k in range(0, features, LANES):
                value = load_some(source, n * time * features + k, features - k)
                store(target, n * TILE + state_column(operands, cells + k), value)


@inline
def _write_initial_states(step, cells, saved_c):
    """Zero the states before the first step. The gradient does not need the hidden ones."""
    for k in range(0, cells, LANES):
        for n in range(step.rows):
            store(step.h_old, n * TILE + state_column(step.h, k), splat(ZERO))
            store(step.c, k * block_rows(step.h) + n * LANES, splat(ZERO))
            if step.save:
                store(saved_c, k * step.rows + n * LANES, splat(ZERO))


@inner
def forward(plan, x, packed, bias, mask, saved, y):
    """All steps of both directions, or of the forward one.

    Args:
        plan: see `Plan`.
        x: inputs, float32 `(batch, time, features)`.
        packed: of each direction: values that hold the right operand of `(cells + features, 4 * cells)`.
        bias: float32 `(directions, 4 * cells)`.
        mask: `(batch, time)`, 0 for masked steps and else 1, or `(0, time)` for none.
        saved: see `SavedActivations`, written.
        y: written, float32 `(batch, time or 1, directions * cells)`; time for `SEQUENCE`.
    """
    batch, time, features = x.shape
    cells, block = bias.shape[1] // GATES, block_rows(packed)
    # Left operands of all steps: hidden states and inputs. The last step writes its states to a spare one.
    size = block * round_up(cells + features, TILE)
    operands = aligned((time + 1) * size, packed)
    # Padding is multiplied, too: columns on AMX, and samples that fill up the last block.
    if (cells + features) % TILE > 0 or batch % block > 0:
        operands[:] = 0
    z, c = aligned(2 * GATES * block * LANES, y), aligned(block * cells, y)
    z[:] = 0  # of a single sample only one row is written
    if plan.returns == MEAN:
        y[:] = 0
    # Hoisted out of the loops: taking an array out of a tuple updates its reference count.
    saved_gates, saved_c = pointer(saved.gates, (0, 0, 0, 0)), pointer(saved.c, (0, 0, 0, 0))
    saved_h, shape = pointer(saved.h, (0, 0, 0, 0)), saved.h.shape
    for start in range(0, batch, block):
        number = min(block, batch - start)
        states = pointer(operands, (0,))
        _read_inputs(x, start, number, cells, states, size)
        for d in range(len(bias)):
            for step in range(plan.steps[d]):
                last = step + 1 == plan.steps[d]
                t = time_of(d, step, time)
                t_next = time if last else time_of(d, step + 1, time)
                old, new = saved_at(d, step, start, shape), saved_at(d, step + 1, start, shape)
                settings = _Step(
                    number,
                    round_up(number, SAMPLES),
                    plan.save,
                    plan.returns,
                    plan.returns != LAST or last,
                    ONE / np.float32(plan.steps[d]),
                    y.shape[1] * y.shape[2],
                    time if len(mask) > 0 else 0,
                    pointer(z, (0,)),
                    pointer(c, (0,)),
                    pointer(states, t * size),
                    pointer(states, t_next * size),
                    pointer(y, (start, t if plan.returns == SEQUENCE else 0, d * cells)),
                    pointer(mask, (start, t)),
                    pointer(saved_gates, GATES * old),
                    pointer(saved_c, new),
                    pointer(saved_h, new),
                )
                if step == 0:
                    _write_initial_states(settings, cells, pointer(saved_c, old))
                # In the first step the states are zero, so only the inputs are multiplied.
                skip = cells // TILE * TILE if step == 0 else 0
                _run_step(settings, pointer(packed, (d, 0)), pointer(bias, (d, 0)), cells, features, skip)
    # Pointers do not keep arrays alive.
    operands[0], z[0], c[0] = 0, 0, 0


@inner
def _run_step(step, packed, bias, cells, features, skip):
    """A step of a block.

    Args:
        step: see `_Step`.
        packed, bias: pointers to those of the direction.
        skip: columns of the states that are not multiplied.
    """
    block, part, in_word = block_rows(packed), block_part(packed), values_in_word(packed)
    parts, columns, rows = (step.rows + part - 1) // part, GATES * LANES, step.rows if step.number > 1 else 1
    lhs, depth = state_lhs(step.h_old, skip), words_in(packed, cells + features - skip)
    stride = round_up(cells + features, TILE) // in_word * LANES
    weights = pointer(as_words(packed), skip // in_word * LANES)
    for k in range(-LANES, cells, LANES):
        k_next = k + LANES
        for first in range(0, step.rows, part):
            # Interleave the next group's product with this group's gates.
            if k_next < cells:
                rhs = pointer(weights, GATES * k_next // LANES * stride)
                biases = pointer(bias, GATES * k_next)
                start = Accumulators(biases, 0, LANES)
                out = Accumulators(_gates_at(step, k_next), LANES, block * LANES)
                multiply(first // part, parts, lhs, rows, depth, rhs, stride, start, out, columns)
            if k >= 0:
                last = min(first + part, step.rows)
                if k_next < cells:
                    _prefetch(step, k_next, first, last)
                if step.mask_stride > 0:
                    _keep_c_of_masked(step, k, first, last)
                _update_states(step, k, first, last)
                if step.mask_stride > 0:
                    _keep_h_of_masked(step, k, first, last)
