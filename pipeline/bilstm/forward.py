"""The forward pass of the recurrence, for a block of samples at a time: see `recurrence.py`."""

import numpy as np

from pipeline.bilstm.activations import SIGMOID, TANH, sigmoids, tanhs
from pipeline.bilstm.jit import compiled, inline
from pipeline.bilstm.matmul import (
    as_words,
    block_part,
    block_rows,
    multiply_part,
    values_in_word,
    whole_rows,
    whole_words,
    words_in,
)
from pipeline.bilstm.recurrence import END, GATES, GROUP, MEAN, ONE, SEQUENCE, TWO, ZERO, kept_at, time_of
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
                write_some(
                    target, j + whole, read_some(source, i + whole, features - whole), features - whole
                )


@compiled
def _begin(d, start, number, keep, h0, c0, operand, c, h_kept, c_kept):
    """Write a block's initial states to where the first step reads them."""
    block, cells = operand.shape[0], h_kept.shape[3]
    kept = kept_at(d, 0, start, h_kept)
    h_start, c_start = pointer(h_kept, (0, 0, 0, 0)), pointer(c_kept, (0, 0, 0, 0))
    for n in range(number):
        for k in range(0, cells, LANES):
            h = cell = broadcast(ZERO)
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
        i, f, g, o = sigmoids(
            read(z, row) * SIGMOID,
            read(z, row + LANES) * SIGMOID,
            read(z, row + 2 * LANES) * TANH,
            read(z, row + 3 * LANES) * SIGMOID,
            gates,
        )
        g = TWO * g - ONE
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
        _update_cells(
            pointer(z, row),
            pointer(c, cell),
            1,
            keep,
            pointer(gates, row if keep else 0),
            pointer(c_kept, cell if keep else 0),
        )
        if mask[n * mask_row] == 0:
            write(c, cell, c_old)
            if keep:
                for v in range(0, GROUP, LANES):
                    write(gates, row + v, broadcast(ZERO))
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
        t0, t1, t2, t3 = tanhs(
            read(c, cell), read(c, cell + LANES), read(c, cell + 2 * LANES), read(c, cell + 3 * LANES), h
        )
        _write_hidden(read(z, row) * t0, h, n, h_row, y, y_row, writes_y, adds_y, share, keep, h_kept)
        _write_hidden(
            read(z, row + GROUP) * t1, h, n + 1, h_row, y, y_row, writes_y, adds_y, share, keep, h_kept
        )
        _write_hidden(
            read(z, row + 2 * GROUP) * t2, h, n + 2, h_row, y, y_row, writes_y, adds_y, share, keep, h_kept
        )
        _write_hidden(
            read(z, row + 3 * GROUP) * t3, h, n + 3, h_row, y, y_row, writes_y, adds_y, share, keep, h_kept
        )
    for n in range(fours, number):
        cell = read(c, n * LANES)
        t0, _, _, _ = tanhs(cell, cell, cell, cell, h)
        _write_hidden(read(z, n * GROUP) * t0, h, n, h_row, y, y_row, writes_y, adds_y, share, keep, h_kept)


@inline
def _carry_hidden(mask, mask_row, number, h_old, h, h_row, y, y_row, writes_y, returns_end, keep, h_kept):
    """Undo `_update_hidden` for samples that have ended: h stays, the output is 0 or the last h."""
    for n in range(number):
        if mask[n * mask_row] == 0:
            out = read(h_old, n * h_row)
            write(h, n * h_row, out)
            if keep:
                write(h_kept, n * LANES, out)
            if returns_end:
                write(y, n * y_row, out)
            elif writes_y:
                write(y, n * y_row, broadcast(ZERO))


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
        h_kept, c_kept: `(2, steps + 1, batch, cells)`, before each step, c_kept also after the last.
        y: float32 `(batch, time, 2 * cells)` for `SEQUENCE`, else `(batch, 1, 2 * cells)`.
    """
    batch, time, features = x.shape
    cells = bias.shape[1] // GATES
    block, depth = block_rows(gates), words_in(gates, cells + features)
    # The left operands of all steps' products: hidden states, inputs. The last step writes to a spare one.
    row = depth * values_in_word(gates)
    operands = aligned((time + 1) * block * row, gates).reshape((time + 1, block, row))
    operands[:, :, cells + features :] = 0
    z = aligned(2 * block * GROUP, y)
    c = aligned(block * cells, y)
    if returns == MEAN:
        y[:] = 0
    for start in range(0, batch, block):
        number = min(block, batch - start)
        _read_inputs(x, start, number, cells, operands)
        for d in range(2):
            _begin(d, start, number, keep, h0, c0, operands[time_of(d, 0, time)], c, h_kept, c_kept)
            _run_steps(
                d,
                steps[d],
                start,
                number,
                returns,
                keep,
                len(h0) == 0,
                operands,
                weights,
                bias,
                z,
                c,
                mask,
                gates,
                h_kept,
                c_kept,
                y,
            )


@compiled
def _run_steps(
    d,
    steps,
    start,
    number,
    returns,
    keep,
    from_zero,
    operands,
    weights,
    bias,
    z,
    c,
    mask,
    gates,
    h_kept,
    c_kept,
    y,
):
    """The steps of one direction for a block of samples; arguments as in `forward`."""
    _, y_times, columns = y.shape
    time, block, h_row = operands.shape[0] - 1, operands.shape[1], operands.shape[2]
    cells, in_word = columns // 2, values_in_word(operands)
    depth, rows, part = h_row // in_word, whole_rows(weights, number), block_part(operands)
    y_row = y_times * columns
    share = ONE / np.float32(steps)
    all_words = as_words(operands)
    gates_start, h_start, c_start = (
        pointer(gates, (0, 0, 0, 0)),
        pointer(h_kept, (0, 0, 0, 0)),
        pointer(c_kept, (0, 0, 0, 0)),
    )
    for step in range(steps):
        t, is_last = time_of(d, step, time), step + 1 == steps
        h_old = pointer(operands, (t, 0, 0))
        h_new = pointer(operands, (time if is_last else time_of(d, step + 1, time), 0, 0))
        keeps_h = keep and not is_last
        writes_y = returns == SEQUENCE or (returns == END and is_last)
        # While the states are zero, the inputs are all that is multiplied.
        skip = whole_words(operands, cells) if step == 0 and from_zero else 0
        left = pointer(all_words, (t, 0, skip))
        kept_old, kept = kept_at(d, step, start, h_kept), kept_at(d, step + 1, start, h_kept)
        for k in range(-LANES, cells, LANES):
            turn, j = k // LANES % 2, GATES * (k + LANES)
            z_k, z_next = pointer(z, (turn * block * GROUP,)), pointer(z, ((1 - turn) * block * GROUP,))
            c_k, y_k = (
                pointer(c, (k * block,)),
                pointer(y, (start, t if returns == SEQUENCE else 0, d * cells + k)),
            )
            gates_k = pointer(gates_start, GATES * (kept_old + k * number))
            c_k_kept, h_k_kept = pointer(c_start, kept + k * number), pointer(h_start, kept + k * number)
            for n in range(0, number, part):
                # The next group's product beside this group's gates, which must not wait for theirs.
                if k + LANES < cells:
                    multiply_part(
                        n // part,
                        (number + part - 1) // part,
                        left,
                        depth,
                        rows,
                        depth - skip,
                        pointer(weights, (d, j * depth)),
                        skip,
                        depth,
                        pointer(bias, (d, j)),
                        z_next,
                        GROUP,
                    )
                if k < 0:
                    continue
                some, z_n, c_n = min(part, number - n), pointer(z_k, n * GROUP), pointer(c_k, n * LANES)
                gates_n, c_n_kept = pointer(gates_k, n * GROUP), pointer(c_k_kept, n * LANES)
                h_n, h_n_kept, y_n = (
                    pointer(h_new, n * h_row + k),
                    pointer(h_k_kept, n * LANES),
                    pointer(y_k, n * y_row),
                )
                if k + LANES < cells:
                    _prefetch_forward(
                        some,
                        keep,
                        pointer(gates_n, number * GROUP),
                        pointer(c_n_kept, number * LANES),
                        pointer(h_n_kept, number * LANES),
                        pointer(y_n, LANES),
                        y_row,
                        writes_y,
                    )
                if len(mask) == 0:
                    _update_cells(z_n, c_n, some, keep, gates_n, c_n_kept)
                else:
                    _update_cells_within(
                        pointer(mask, (start + n, t)), time, z_n, c_n, some, keep, gates_n, c_n_kept
                    )
                _update_hidden(
                    z_n,
                    c_n,
                    some,
                    h_n,
                    h_row,
                    y_n,
                    y_row,
                    writes_y,
                    returns == MEAN,
                    share,
                    keeps_h,
                    h_n_kept,
                )
                if len(mask) > 0:
                    _carry_hidden(
                        pointer(mask, (start + n, t)),
                        time,
                        some,
                        pointer(h_old, n * h_row + k),
                        h_n,
                        h_row,
                        y_n,
                        y_row,
                        writes_y,
                        returns == END,
                        keeps_h,
                        h_n_kept,
                    )
