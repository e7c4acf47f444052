"""The forward pass of the recurrence, for a block of samples at a time: see `recurrence.py`."""

from typing import NamedTuple

import numpy as np

from fastlstm.activations import SIGMOID, TANH, sigmoid_of_scaled, tanh
from fastlstm.jit import inline, inner, literal_inline
from fastlstm.matmul import (
    PANEL,
    Accumulators,
    PackedRhs,
    begin_products,
    block_lhs,
    block_part,
    block_rows,
    end_products,
    lhs_column,
    lhs_stride,
    multiply_part,
    round_up,
    tile_depth,
    values_in_word,
    words_in,
)
from fastlstm.recurrence import END, GATES, GROUP, MEAN, ONE, SEQUENCE, TWO, ZERO, saved_at, time_of
from fastlstm.simd import (
    LANES,
    aligned,
    as_words,
    join,
    load,
    load_rows,
    load_some,
    pointer,
    prefetch,
    rows_of,
    splat,
    store,
    store_rows,
    store_some,
)


class _Scratch(NamedTuple):
    """Pointers to a block's memory.

    Attributes:
        operands: left operands of all steps' products (hidden states, inputs), values
            `(time + 1, block, columns)`. The last step writes its states to the spare one at the end.
        z: products of two groups of cells, float32 `(2, block, GROUP)`.
        c: cell states, float32 `(cells / LANES, block, LANES)`.
        block: number of samples; columns: of the operands.
    """

    operands: int
    z: int
    c: int
    block: int
    columns: int


class _StepConfig(NamedTuple):
    """Settings of a step, and the strides of samples in its arrays."""

    number: int
    save: bool
    save_h: bool
    write_y: bool
    add_y: bool
    end: bool
    share: float
    h_stride: int
    y_stride: int
    mask_stride: int


class _Group(NamedTuple):
    """Pointers to a group of cells of the first sample; z are the gates' arguments `(block, GROUP)`."""

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
def _update_cells(group, config, first, last):
    """Compute cell states from the gates' arguments z; leave o in z's first columns."""
    scales = join(splat(SIGMOID), splat(SIGMOID), splat(TANH), splat(SIGMOID))
    for n in range(first, last):
        gates, cell = n * GROUP, n * LANES
        z = load_rows(group.z, gates, LANES, GATES)
        i, f, g, o = rows_of(sigmoid_of_scaled(z * scales, group.saved_gates))
        g = TWO * g - ONE
        c = f * load(group.c, cell) + i * g
        store(group.c, cell, c)
        store(group.z, gates, o)
        if config.save:
            store(group.saved_gates, gates, join(i, f, g, o))
            store(group.saved_c, cell, c)


@inline
def _update_masked_cells(group, config, first, last):
    """`_update_cells` of samples that may have ended: their gates are 0, their states stay."""
    for n in range(first, last):
        cell, c_old = n * LANES, load(group.c, n * LANES)
        _update_cells(group, config, n, n + 1)
        if group.mask[n * config.mask_stride] == 0:
            store(group.c, cell, c_old)
            if config.save:
                zeros = splat(ZERO)
                store(group.saved_gates, n * GROUP, join(zeros, zeros, zeros, zeros))
                store(group.saved_c, cell, c_old)


@literal_inline
def _update_hidden_rows(group, config, n, rows):
    h = load_rows(group.z, n * GROUP, GROUP, rows) * tanh(
        load_rows(group.c, n * LANES, LANES, rows), group.saved_gates
    )
    y, y_stride = n * config.y_stride, config.y_stride
    store_rows(group.h, n * config.h_stride, config.h_stride, h)
    if config.add_y:
        store_rows(group.y, y, y_stride, h * config.share + load_rows(group.y, y, y_stride, rows))
    elif config.write_y:
        store_rows(group.y, y, y_stride, h)
    if config.save_h:
        store(group.saved_h, n * LANES, h)


@inline
def _update_hidden(group, config, first, last):
    """Compute hidden states from the cell states, and from o in z's first columns."""
    fours = last - (last - first) % 4
    for n in range(first, fours, 4):
        _update_hidden_rows(group, config, n, 4)
    for n in range(fours, last):
        _update_hidden_rows(group, config, n, 1)


@inline
def _undo_hidden(group, config, first, last):
    """After `_update_hidden`, of samples that have ended: h stays, the output is 0 or the last h."""
    for n in range(first, last):
        if group.mask[n * config.mask_stride] == 0:
            h = load(group.h_old, n * config.h_stride)
            store(group.h, n * config.h_stride, h)
            if config.save_h:
                store(group.saved_h, n * LANES, h)
            if config.end:
                store(group.y, n * config.y_stride, h)
            elif config.write_y:
                store(group.y, n * config.y_stride, splat(ZERO))


@inline
def _prefetch_next(group, config, first, last):
    """Prefetch the destinations of the next group of cells."""
    for n in range(first, last):
        if config.write_y:
            prefetch(group.y, n * config.y_stride + LANES, LANES)
        if config.save:
            following = config.number + n
            prefetch(group.saved_gates, following * GROUP, GROUP)
            prefetch(group.saved_c, following * LANES, LANES)
            prefetch(group.saved_h, following * LANES, LANES)


@inner
def _read_inputs(x, start, number, cells, scratch):
    """Write a block's inputs to the left operands of all steps' products, beside the hidden states."""
    _, time, features = x.shape
    whole, stride = (features // LANES * LANES, lhs_stride(scratch.operands, scratch.columns))
    for t in range(time):
        source = pointer(x, (start, t, 0))
        target = pointer(scratch.operands, t * scratch.block * scratch.columns)
        for n in range(number):
            i, j = n * time * features, n * stride
            for k in range(0, whole, LANES):
                store(target, j + lhs_column(scratch.operands, cells + k), load(source, i + k))
            if whole < features:
                value = load_some(source, i + whole, features - whole)
                column = lhs_column(scratch.operands, cells + whole)
                store_some(target, j + column, value, features - whole)


@inner
def _write_initial_states(d, start, number, plan, time, cells, scratch, saved):
    """Write a block's initial states (zeros) to the operands of the first step."""
    stride = lhs_stride(scratch.operands, scratch.columns)
    at, saved_h, saved_c = saved_at(d, 0, start, saved.h), saved.h, saved.c
    operand = pointer(scratch.operands, time_of(d, 0, time) * scratch.block * scratch.columns)
    first_h, first_c = pointer(saved_h, (0, 0, 0, 0)), pointer(saved_c, (0, 0, 0, 0))
    for n in range(number):
        for k in range(0, cells, LANES):
            store(operand, n * stride + lhs_column(scratch.operands, k), splat(ZERO))
            store(scratch.c, k * scratch.block + n * LANES, splat(ZERO))
            if plan.save:
                store(first_h, at + k * number + n * LANES, splat(ZERO))
                store(first_c, at + k * number + n * LANES, splat(ZERO))


@inner
def forward(plan, x, packed, bias, mask, saved, y):
    """All steps of both directions, or of the forward one.

    Args:
        plan: see `Plan`.
        x: inputs, float32 `(batch, time, features)`.
        packed: of each direction: values that hold the words of `(cells + features, 4 * cells)`.
        bias: float32 `(directions, 4 * cells)`.
        mask: `(batch, time)`, 1 within a sample and 0 past its end, or `(0, time)` for none.
        saved: see `SavedActivations`, written.
        y: written, float32 `(batch, time or 1, directions * cells)`; time for `SEQUENCE`.
    """
    batch, time, features = x.shape
    cells, block = bias.shape[1] // GATES, block_rows(packed)
    columns = words_in(packed, cells + features) * values_in_word(packed)
    operands = aligned((time + 1) * block * columns, packed)
    if cells + features < columns:
        operands[:] = 0
    z, c = aligned(2 * block * GROUP, y), aligned(block * cells, y)
    scratch = _Scratch(pointer(operands, (0,)), pointer(z, (0,)), pointer(c, (0,)), block, columns)
    if plan.returns == MEAN:
        y[:] = 0
    tile_state = begin_products(packed)  # after the allocations, which may fail
    for start in range(0, batch, block):
        number = min(block, batch - start)
        _read_inputs(x, start, number, cells, scratch)
        for d in range(len(bias)):
            _write_initial_states(d, start, number, plan, time, cells, scratch, saved)
            _run_steps(d, start, number, plan, time, packed, bias, mask, scratch, saved, y)
    end_products(tile_state)
    # Pointers do not keep arrays alive.
    operands[0], z[0], c[0] = 0, 0, 0


@inner
def _run_steps(d, start, number, plan, time, packed, bias, mask, scratch, saved, y):
    """The steps of one direction for a block of samples; arguments as in `forward`."""
    _, y_times, y_columns = y.shape
    operands, block, columns = scratch.operands, scratch.block, scratch.columns
    cells, depth, part = (bias.shape[1] // GATES, columns // values_in_word(packed), block_part(packed))
    rows, parts = round_up(number, tile_depth(packed)), (number + part - 1) // part
    # Not in the loops: Numba counts references to an array whenever it is taken out of a tuple.
    saved_h = saved.h
    first_gates, first_h = (pointer(saved.gates, (0, 0, 0, 0)), pointer(saved_h, (0, 0, 0, 0)))
    first_c, weights = pointer(saved.c, (0, 0, 0, 0)), as_words(pointer(packed, (d, 0)))
    for step in range(plan.steps[d]):
        t, last = time_of(d, step, time), step + 1 == plan.steps[d]
        t_next, y_t = (time if last else time_of(d, step + 1, time), t if plan.returns == SEQUENCE else 0)
        config = _StepConfig(
            number,
            plan.save,
            plan.save and not last,
            plan.returns == SEQUENCE or (plan.returns == END and last),
            plan.returns == MEAN,
            plan.returns == END,
            ONE / np.float32(plan.steps[d]),
            lhs_stride(operands, columns),
            y_times * y_columns,
            time,
        )
        # In the first step the states are zero, so only the inputs are multiplied.
        skip = 0
        if step == 0:
            skip = cells // values_in_word(packed) // tile_depth(packed) * tile_depth(packed)
        lhs = block_lhs(as_words(pointer(operands, t * block * columns)), depth, skip)
        new = saved_at(d, step + 1, start, saved_h)
        gates = saved_at(d, step, start, saved_h) * GATES
        for k in range(-LANES, cells, LANES):
            turn, j = k // LANES % 2, GATES * (k + LANES)
            column = lhs_column(operands, k)
            group = _Group(
                pointer(scratch.z, turn * block * GROUP),
                pointer(scratch.c, k * block),
                pointer(operands, t * block * columns + column),
                pointer(operands, t_next * block * columns + column),
                pointer(y, (start, y_t, d * cells + k)),
                pointer(mask, (start, t)),
                pointer(first_gates, gates + GATES * k * number),
                pointer(first_c, new + k * number),
                pointer(first_h, new + k * number),
            )
            for n in range(0, number, part):
                # Interleave the next group's product with this group's gates.
                if k + LANES < cells:
                    rhs = PackedRhs(pointer(weights, j * depth), skip, depth)
                    out = Accumulators(pointer(scratch.z, (1 - turn) * block * GROUP), GROUP, PANEL)
                    start_at = pointer(bias, (d, j))
                    multiply_part(n // part, parts, lhs, rows, depth - skip, rhs, start_at, out, GROUP)
                if k >= 0:
                    end = min(n + part, number)
                    _update(group, config, n, end, k + LANES < cells, len(mask) > 0)


@inline
def _update(group, config, first, last, more, masked):
    """Update the states of a group of cells of some samples.

    Args:
        more: whether there is another group after it.
        masked: whether samples may have ended.
    """
    if more:
        _prefetch_next(group, config, first, last)
    if masked:
        _update_masked_cells(group, config, first, last)
    else:
        _update_cells(group, config, first, last)
    _update_hidden(group, config, first, last)
    if masked:
        _undo_hidden(group, config, first, last)
