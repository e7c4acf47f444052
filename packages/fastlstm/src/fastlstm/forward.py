"""The forward pass of the recurrence, for a block of samples at a time: see `recurrence.py`."""

from typing import NamedTuple

import numpy as np

from fastlstm.activations import sigmoid, tanh
from fastlstm.jit import inline, inner
from fastlstm.matmul import (
    TILE,
    Sums,
    begin_products,
    block_part,
    block_rows,
    end_products,
    multiply,
    round_up,
    state_column,
    state_lhs,
    values_in_word,
    words_in,
)
from fastlstm.recurrence import END, GATES, MEAN, ONE, SEQUENCE, ZERO, saved_at, time_of
from fastlstm.simd import (
    FOUR,
    LANES,
    WIDE,
    aligned,
    as_words,
    load,
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


class _Scratch(NamedTuple):
    """Pointers to a block's memory.

    Attributes:
        operands: states of all steps (hidden states, inputs), values `(time + 1, block, columns)` in the
            layout of states. The last step writes its hidden states to the spare one at the end.
        z: products of two groups of cells, float32 `(2, GATES, block, LANES)`.
        c: cell states, float32 `(cells / LANES, block, LANES)`.
        step: values of a step's states.
    """

    operands: int
    z: int
    c: int
    step: int


class _StepConfig(NamedTuple):
    """Settings of a step, and the strides of samples in y and mask.

    Attributes:
        number, rows: samples in the block, and rounded up to a multiple of FOUR.
        save: see `Plan`.
        writes, adds: whether y is h, or gets h * share added.
        end: whether y is the hidden state after the last step.
        masked: whether samples may have ended.
    """

    number: int
    rows: int
    save: bool
    writes: bool
    adds: bool
    end: bool
    masked: bool
    share: float
    y_stride: int
    mask_stride: int


class _Group(NamedTuple):
    """Pointers to a group of cells of the first sample; z are the gates' arguments, and then h."""

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
def _update_states(group, config, first, last):
    """Compute the new states of some samples, four at a time."""
    z_gate, gate = block_rows(group.h) * LANES, config.rows * LANES
    for n in range(first * LANES, last * LANES, WIDE):
        i = sigmoid(load_wide(group.z, n), group.h)
        f = sigmoid(load_wide(group.z, z_gate + n), group.h)
        g = tanh(load_wide(group.z, 2 * z_gate + n), group.h)
        o = sigmoid(load_wide(group.z, 3 * z_gate + n), group.h)
        c = f * load_wide(group.c, n) + i * g
        h = o * tanh(c, group.h)
        store(group.c, n, c)
        store(group.z, n, h)
        store_rows(group.h, n // LANES * TILE, TILE, (h,))
        if config.save:
            store(group.saved_gates, n, i)
            store(group.saved_gates, gate + n, f)
            store(group.saved_gates, 2 * gate + n, g)
            store(group.saved_gates, 3 * gate + n, o)
            store(group.saved_c, n, c)
            store(group.saved_h, n, h)


@inline
def _has_ended(group, config, n):
    return config.masked and group.mask[n * config.mask_stride] == 0


@inline
def _keep_c_of_ended(group, config, first, last):
    """Arguments of the gates with which `_update_states` leaves c as it is: f is 1, g is 0."""
    z_gate = block_rows(group.h) * LANES
    for n in range(first, min(last, config.number)):
        if _has_ended(group, config, n):
            store(group.z, n * LANES, splat(-_SATURATED))
            store(group.z, z_gate + n * LANES, splat(_SATURATED))
            store(group.z, 2 * z_gate + n * LANES, splat(ZERO))


@inline
def _write_outputs(group, config, first, last):
    """After `_update_states`: y. Samples that have ended keep h; their output is 0 or the last h."""
    for n in range(first, min(last, config.number)):
        h = load(group.z, n * LANES)
        if _has_ended(group, config, n):
            h = load(group.h_old, n * TILE)
            store(group.h, n * TILE, h)
            if config.save:
                store(group.saved_h, n * LANES, h)
                store(group.saved_gates, n * LANES, splat(ZERO))  # almost 0 before
            if not config.end:
                h = splat(ZERO)
        y = n * config.y_stride
        if config.adds:
            store(group.y, y, h * config.share + load(group.y, y))
        elif config.writes:
            store(group.y, y, h)


@inline
def _prefetch_next(group, config, first, last):
    """Prefetch the destinations of the next group of cells."""
    for n in range(first, min(last, config.number)):
        if config.writes:
            prefetch(group.y, n * config.y_stride + LANES, LANES)
        if config.save:
            following = (config.rows + n) * LANES
            prefetch(group.saved_gates, GATES * following, GATES * LANES)
            prefetch(group.saved_c, following, LANES)
            prefetch(group.saved_h, following, LANES)


@inner
def _read_inputs(x, start, number, cells, scratch):
    """Write a block's inputs to the operands of all steps, beside the hidden states."""
    _, time, features = x.shape
    for t in range(time):
        source, target = pointer(x, (start, t, 0)), pointer(scratch.operands, t * scratch.step)
        for n in range(number):
            for k in range(0, features, LANES):
                value = load_some(source, n * time * features + k, features - k)
                store(target, n * TILE + state_column(scratch.operands, cells + k), value)


@inner
def _write_initial_states(d, start, rows, plan, time, cells, scratch, saved):
    """Write a block's initial states (zeros) to the operands of the first step."""
    at, saved_h, saved_c = saved_at(d, 0, start, saved.h), saved.h, saved.c
    operand = pointer(scratch.operands, time_of(d, 0, time) * scratch.step)
    first_h, first_c = pointer(saved_h, (0, 0, 0, 0)), pointer(saved_c, (0, 0, 0, 0))
    for k in range(0, cells, LANES):
        for n in range(rows):
            store(operand, n * TILE + state_column(scratch.operands, k), splat(ZERO))
            store(scratch.c, k * block_rows(scratch.operands) + n * LANES, splat(ZERO))
            if plan.save:
                store(first_h, at + k * rows + n * LANES, splat(ZERO))
                store(first_c, at + k * rows + n * LANES, splat(ZERO))


@inner
def forward(plan, x, packed, bias, mask, saved, y):
    """All steps of both directions, or of the forward one.

    Args:
        plan: see `Plan`.
        x: inputs, float32 `(batch, time, features)`.
        packed: of each direction: values that hold the right operand of `(cells + features, 4 * cells)`.
        bias: float32 `(directions, 4 * cells)`.
        mask: `(batch, time)`, 1 within a sample and 0 past its end, or `(0, time)` for none.
        saved: see `SavedActivations`, written.
        y: written, float32 `(batch, time or 1, directions * cells)`; time for `SEQUENCE`.
    """
    batch, time, features = x.shape
    cells, block = bias.shape[1] // GATES, block_rows(packed)
    step = block * round_up(cells + features, TILE)
    operands = aligned((time + 1) * step, packed)
    z, c = aligned(2 * GATES * block * LANES, y), aligned(block * cells, y)
    scratch = _Scratch(pointer(operands, (0,)), pointer(z, (0,)), pointer(c, (0,)), step)
    if plan.returns == MEAN:
        y[:] = 0
    tile_state = begin_products(packed)  # after the allocations, which may fail
    for start in range(0, batch, block):
        number = min(block, batch - start)
        _read_inputs(x, start, number, cells, scratch)
        for d in range(len(bias)):
            _write_initial_states(d, start, round_up(number, FOUR), plan, time, cells, scratch, saved)
            _run_steps(d, start, number, plan, x, packed, bias, mask, scratch, saved, y)
    end_products(tile_state)
    # Pointers do not keep arrays alive.
    operands[0], z[0], c[0] = 0, 0, 0


@inner
def _run_steps(d, start, number, plan, x, packed, bias, mask, scratch, saved, y):
    """The steps of one direction for a block of samples; arguments as in `forward`."""
    _, time, features = x.shape
    operands, block, part = scratch.operands, block_rows(packed), block_part(packed)
    cells, rows, last_step = bias.shape[1] // GATES, round_up(number, FOUR), plan.steps[d] - 1
    parts, in_word = (rows + part - 1) // part, values_in_word(packed)
    rhs_stride = packed.shape[1] // in_word // (GATES * cells) * LANES
    # Not in the loops: Numba counts references to an array whenever it is taken out of a tuple.
    saved_h = saved.h
    first_gates, first_h = (pointer(saved.gates, (0, 0, 0, 0)), pointer(saved_h, (0, 0, 0, 0)))
    first_c, weights = pointer(saved.c, (0, 0, 0, 0)), as_words(pointer(packed, (d, 0)))
    for step in range(plan.steps[d]):
        t, y_t = time_of(d, step, time), 0
        t_next = time if step == last_step else time_of(d, step + 1, time)
        if plan.returns == SEQUENCE:
            y_t = t
        config = _StepConfig(
            number,
            rows,
            plan.save,
            plan.returns == SEQUENCE or (plan.returns == END and step == last_step),
            plan.returns == MEAN,
            plan.returns == END,
            len(mask) > 0,
            ONE / np.float32(plan.steps[d]),
            y.shape[1] * y.shape[2],
            time,
        )
        # In the first step the states are zero, so only the inputs are multiplied.
        skip = cells // TILE * TILE if step == 0 else 0
        lhs = state_lhs(pointer(operands, t * scratch.step), skip)
        depth = words_in(packed, cells + features - skip)
        old, new = saved_at(d, step, start, saved_h), saved_at(d, step + 1, start, saved_h)
        for k in range(-LANES, cells, LANES):
            z = pointer(scratch.z, k // LANES % 2 * GATES * block * LANES)
            z_next = pointer(scratch.z, (k // LANES + 1) % 2 * GATES * block * LANES)
            column, following, is_last = state_column(operands, k), GATES * (k + LANES), k + LANES == cells
            group = _Group(
                z,
                pointer(scratch.c, k * block),
                pointer(operands, t * scratch.step + column),
                pointer(operands, t_next * scratch.step + column),
                pointer(y, (start, y_t, d * cells + k)),
                pointer(mask, (start, t)),
                pointer(first_gates, GATES * (old + k * rows)),
                pointer(first_c, new + k * rows),
                pointer(first_h, new + k * rows),
            )
            for first in range(0, rows, part):
                # Interleave the next group's product with this group's gates.
                if not is_last:
                    rhs = pointer(weights, following // LANES * rhs_stride + skip // in_word * LANES)
                    biases = Sums(pointer(bias, (d, following)), 0, LANES)
                    out = Sums(z_next, LANES, block * LANES)
                    multiply(
                        first // part, parts, lhs, rows, depth, rhs, rhs_stride, biases, out, GATES * LANES
                    )
                if k >= 0:
                    last = min(first + part, rows)
                    if not is_last:
                        _prefetch_next(group, config, first, last)
                    if config.masked:
                        _keep_c_of_ended(group, config, first, last)
                    _update_states(group, config, first, last)
                    _write_outputs(group, config, first, last)
