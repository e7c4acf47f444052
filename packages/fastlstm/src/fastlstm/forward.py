"""The forward pass of the recurrence, for a block of samples at a time: see `recurrence.py`."""

from typing import NamedTuple

import numpy as np

from fastlstm.activations import SIGMOID, TANH, sigmoids, tanhs
from fastlstm.jit import inline, inner
from fastlstm.matmul import (
    PANEL,
    Panels,
    Sums,
    as_words,
    begin_products,
    block_left,
    block_part,
    block_rows,
    end_products,
    left_column,
    left_row,
    multiply_part,
    values_in_word,
    whole_rows,
    whole_words,
    words_in,
)
from fastlstm.recurrence import END, GATES, GROUP, MEAN, ONE, SEQUENCE, TWO, ZERO, kept_at, time_of
from fastlstm.simd import (
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
    """Memory of a block: the left operands of all steps' products, sums of two groups, and cell states."""

    operands: np.ndarray
    z: np.ndarray
    c: np.ndarray


class _How(NamedTuple):
    """What a step does, and the distance from one sample to the next in its arrays."""

    number: int
    keep: bool
    keep_h: bool
    write_y: bool
    add_y: bool
    end: bool
    share: float
    h_row: int
    y_row: int
    mask_row: int


class _Group(NamedTuple):
    """Pointers to a group of cells of the block's first sample; z are the gates' arguments `(block, 64)`."""

    z: int
    c: int
    h_old: int
    h: int
    y: int
    mask: int
    gates_kept: int
    c_kept: int
    h_kept: int


@inline
def _update_cells(group, how, first, last):
    """From the gates' arguments z of some samples to their cell states; o is left in z's first columns."""
    for n in range(first, last):
        row, cell = n * GROUP, n * LANES
        i, f, g, o = sigmoids(
            read(group.z, row) * SIGMOID,
            read(group.z, row + LANES) * SIGMOID,
            read(group.z, row + 2 * LANES) * TANH,
            read(group.z, row + 3 * LANES) * SIGMOID,
            group.gates_kept,
        )
        g = TWO * g - ONE
        c = f * read(group.c, cell) + i * g
        write(group.c, cell, c)
        write(group.z, row, o)
        if how.keep:
            write_pair(group.gates_kept, row, i, f)
            write_pair(group.gates_kept, row + 2 * LANES, g, o)
            write(group.c_kept, cell, c)


@inline
def _update_masked_cells(group, how, first, last):
    """`_update_cells` of samples that may have ended: their gates are 0, their states stay."""
    for n in range(first, last):
        cell, c_old = n * LANES, read(group.c, n * LANES)
        _update_cells(group, how, n, n + 1)
        if group.mask[n * how.mask_row] == 0:
            write(group.c, cell, c_old)
            if how.keep:
                for v in range(0, GROUP, LANES):
                    write(group.gates_kept, n * GROUP + v, broadcast(ZERO))
                write(group.c_kept, cell, c_old)


@inline
def _write_hidden(group, how, n, tanh_c):
    h = read(group.z, n * GROUP) * tanh_c
    write(group.h, n * how.h_row, h)
    if how.add_y:
        write(group.y, n * how.y_row, h * how.share + read(group.y, n * how.y_row))
    elif how.write_y:
        write(group.y, n * how.y_row, h)
    if how.keep_h:
        write(group.h_kept, n * LANES, h)


@inline
def _update_hidden(group, how, first, last):
    """From the cell states, and o in z's first columns, to the hidden states."""
    fours = last - (last - first) % 4
    for n in range(first, fours, 4):
        cell = n * LANES
        t0, t1, t2, t3 = tanhs(
            read(group.c, cell),
            read(group.c, cell + LANES),
            read(group.c, cell + 2 * LANES),
            read(group.c, cell + 3 * LANES),
            group.gates_kept,
        )
        _write_hidden(group, how, n, t0)
        _write_hidden(group, how, n + 1, t1)
        _write_hidden(group, how, n + 2, t2)
        _write_hidden(group, how, n + 3, t3)
    for n in range(fours, last):
        c = read(group.c, n * LANES)
        t0, _, _, _ = tanhs(c, c, c, c, group.gates_kept)
        _write_hidden(group, how, n, t0)


@inline
def _undo_hidden(group, how, first, last):
    """After `_update_hidden`, of samples that have ended: h stays, the output is 0 or the last h."""
    for n in range(first, last):
        if group.mask[n * how.mask_row] == 0:
            h = read(group.h_old, n * how.h_row)
            write(group.h, n * how.h_row, h)
            if how.keep_h:
                write(group.h_kept, n * LANES, h)
            if how.end:
                write(group.y, n * how.y_row, h)
            elif how.write_y:
                write(group.y, n * how.y_row, broadcast(ZERO))


@inline
def _prefetch_next(group, how, first, last):
    """Fetch what the next group of cells is written to."""
    for n in range(first, last):
        if how.write_y:
            prefetch(group.y, n * how.y_row + LANES, LANES)
        if how.keep:
            following = how.number + n
            prefetch(group.gates_kept, following * GROUP, GROUP)
            prefetch(group.c_kept, following * LANES, LANES)
            prefetch(group.h_kept, following * LANES, LANES)


@inner
def _read_inputs(x, start, number, cells, operands):
    """Write a block's inputs to the left operands of all steps' products, beside the hidden states."""
    _, time, features = x.shape
    whole, row = features // LANES * LANES, left_row(operands, operands.shape[2])
    for t in range(time):
        source, target = pointer(x, (start, t, 0)), pointer(operands, (t, 0, 0))
        for n in range(number):
            i, j = n * time * features, n * row
            for k in range(0, whole, LANES):
                write(target, j + left_column(operands, cells + k), read(source, i + k))
            if whole < features:
                write_some(
                    target,
                    j + left_column(operands, cells + whole),
                    read_some(source, i + whole, features - whole),
                    features - whole,
                )


@inner
def _begin(d, start, number, plan, scratch, kept):
    """Write a block's initial states, zeros, to where the first step reads them."""
    _, block, columns = scratch.operands.shape
    row = left_row(scratch.operands, columns)
    cells, time = kept.h.shape[3], len(scratch.operands) - 1
    at, operand = kept_at(d, 0, start, kept.h), pointer(scratch.operands, (time_of(d, 0, time), 0, 0))
    h_start, c_start = pointer(kept.h, (0, 0, 0, 0)), pointer(kept.c, (0, 0, 0, 0))
    for n in range(number):
        for k in range(0, cells, LANES):
            h = c = broadcast(ZERO)
            write(operand, n * row + left_column(scratch.operands, k), h)
            write(scratch.c, (k * block + n * LANES,), c)
            if plan.save:
                write(h_start, at + k * number + n * LANES, h)
                write(c_start, at + k * number + n * LANES, c)


@inner
def forward(plan, x, packed, bias, mask, kept, y):
    """All steps of both directions, or of the forward one.

    Args:
        plan: see `Plan`.
        x: inputs, float32 `(batch, time, features)`.
        packed: of each direction: values that hold the words of `(cells + features, 4 * cells)`.
        bias: float32 `(directions, 4 * cells)`.
        mask: `(batch, time)`, 1 within a sample and 0 past its end, or `(0, time)` for none.
        kept: see `SavedActivations`, written.
        y: written, float32 `(batch, time or 1, directions * cells)`; time for `SEQUENCE`.
    """
    batch, time, features = x.shape
    weights, tile_state = as_words(packed), begin_products(packed)
    cells, block = bias.shape[1] // GATES, block_rows(kept.gates)
    # The last step writes its states to a spare operand.
    row = words_in(kept.gates, cells + features) * values_in_word(kept.gates)
    operands = aligned((time + 1) * block * row, kept.gates).reshape((time + 1, block, row))
    if cells + features < row:
        operands[:] = 0
    scratch = _Scratch(operands, aligned(2 * block * GROUP, y), aligned(block * cells, y))
    if plan.returns == MEAN:
        y[:] = 0
    for start in range(0, batch, block):
        number = min(block, batch - start)
        _read_inputs(x, start, number, cells, operands)
        for d in range(len(bias)):
            _begin(d, start, number, plan, scratch, kept)
            _run_steps(d, start, number, plan, weights, bias, mask, scratch, kept, y)
    end_products(tile_state)


@inner
def _run_steps(d, start, number, plan, weights, bias, mask, scratch, kept, y):
    """The steps of one direction for a block of samples; arguments as in `forward`."""
    _, y_times, columns = y.shape
    _, block, operand_columns = scratch.operands.shape
    h_row = left_row(scratch.operands, operand_columns)
    cells, time, words = bias.shape[1] // GATES, len(scratch.operands) - 1, as_words(scratch.operands)
    depth, rows, part = words.shape[2], whole_rows(weights, number), block_part(kept.gates)
    # Not in the loops: Numba counts references to an array whenever it is taken out of a tuple.
    h_kept, gates_start = kept.h, pointer(kept.gates, (0, 0, 0, 0))
    h_start, c_start = pointer(h_kept, (0, 0, 0, 0)), pointer(kept.c, (0, 0, 0, 0))
    operands, z, c = pointer(scratch.operands, (0, 0, 0)), pointer(scratch.z, (0,)), pointer(scratch.c, (0,))
    for step in range(plan.steps[d]):
        t, last = time_of(d, step, time), step + 1 == plan.steps[d]
        t_next, y_t = time if last else time_of(d, step + 1, time), t if plan.returns == SEQUENCE else 0
        how = _How(
            number,
            plan.save,
            plan.save and not last,
            plan.returns == SEQUENCE or (plan.returns == END and last),
            plan.returns == MEAN,
            plan.returns == END,
            ONE / np.float32(plan.steps[d]),
            h_row,
            y_times * columns,
            time,
        )
        # While the states are zero, the inputs are all that is multiplied.
        skip = whole_words(kept.gates, cells) if step == 0 else 0
        left = block_left(pointer(words, (t, 0, 0)), depth, skip)
        old, new = kept_at(d, step, start, h_kept), kept_at(d, step + 1, start, h_kept)
        for k in range(-LANES, cells, LANES):
            turn, j = k // LANES % 2, GATES * (k + LANES)
            panels = Panels(pointer(weights, (d, j * depth)), skip, depth)
            group = _Group(
                pointer(z, turn * block * GROUP),
                pointer(c, k * block),
                pointer(operands, t * block * operand_columns + left_column(scratch.operands, k)),
                pointer(operands, t_next * block * operand_columns + left_column(scratch.operands, k)),
                pointer(y, (start, y_t, d * cells + k)),
                pointer(mask, (start, t)),
                pointer(gates_start, GATES * (old + k * number)),
                pointer(c_start, new + k * number),
                pointer(h_start, new + k * number),
            )
            for n in range(0, number, part):
                # The next group's product beside this group's gates, which must not wait for theirs.
                if k + LANES < cells:
                    multiply_part(
                        n // part,
                        (number + part - 1) // part,
                        left,
                        rows,
                        depth - skip,
                        panels,
                        pointer(bias, (d, j)),
                        Sums(pointer(z, (1 - turn) * block * GROUP), GROUP, PANEL),
                        GROUP,
                    )
                if k >= 0:
                    _update(group, how, n, min(n + part, number), k + LANES < cells, len(mask) > 0)


@inline
def _update(group, how, first, last, more, masked):
    """Update the states of a group of cells of some samples.

    Args:
        more: whether there is another group after it; masked: whether samples may have ended.
    """
    if more:
        _prefetch_next(group, how, first, last)
    if masked:
        _update_masked_cells(group, how, first, last)
    else:
        _update_cells(group, how, first, last)
    _update_hidden(group, how, first, last)
    if masked:
        _undo_hidden(group, how, first, last)
