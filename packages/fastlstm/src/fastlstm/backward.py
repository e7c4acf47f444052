"""The gradient of the recurrence, for a block of samples at a time: see `recurrence.py`."""

from typing import NamedTuple

import numpy as np

from fastlstm.gate_gradients import Group, How, gate_gradients_of_step
from fastlstm.jit import inline, inner
from fastlstm.matmul import (
    PANEL,
    Left,
    Panels,
    Sums,
    as_words,
    begin_products,
    block_left,
    block_rows,
    end_products,
    in_panels,
    left_column,
    left_row,
    multiply,
    multiply_part,
    round_up,
    values_in_word,
    whole_block,
    whole_rows,
    words_in,
)
from fastlstm.packing import left_strides, pack_columns, pack_rows
from fastlstm.recurrence import END, GATES, MEAN, ONE, SEQUENCE, kept_at, time_of
from fastlstm.simd import LANES, aligned, pointer, read, read_some, write, write_some


class _Scratch(NamedTuple):
    """Memory of a block.

    Attributes:
        d_operands: of the hidden states, and of the inputs if they are wanted, float32
            `(panels, block, PANEL)`.
        d_c, d_past: float32 `(cells / LANES, block, LANES)`: of the cell states; of the last hidden states of
            samples that have ended.
        d_gates: one step's gradients of the gates' arguments, values `(block, 4 * cells)`, a left operand.
        x: values of a group of one step's inputs `(block, LANES)`; spare: words `(LANES, LANES)`.
        left, right: the operands of the weights' gradients, words, filled step by step.
        zeros: float32.
    """

    d_operands: np.ndarray
    d_c: np.ndarray
    d_past: np.ndarray
    d_gates: np.ndarray
    x: np.ndarray
    spare: np.ndarray
    left: np.ndarray
    right: np.ndarray
    zeros: np.ndarray


class _Block(NamedTuple):
    """Pointers to the arrays of `_Scratch`, and sizes; hot loops take no arrays out of tuples.

    Attributes:
        d_words: the words of d_gates, of a sample `words`.
        depth: words of a row of the weights' gradients' operands.
        wanted: columns of d_operands.
    """

    d_operands: int
    d_c: int
    d_past: int
    d_gates: int
    d_words: int
    x: int
    spare: int
    left: int
    right: int
    zeros: int
    number: int
    columns: int
    features: int
    words: int
    depth: int
    wanted: int


@inline
def _pack_part(block, part, step, h, x, x_row):
    """Pack a part of a step's operands of the weights' gradients.

    The first parts are groups of the states and inputs, on the left; the others panels of the gates'
    gradients, on the right.
    """
    cells, width = block.columns // GATES, round_up(block.features, LANES)
    row, word = left_strides(block.d_gates, cells + width, block.depth)
    first_word, k = step * words_in(block.d_gates, block.number), part * LANES - cells
    left = pointer(block.left, first_word * word)
    if k < 0:
        h_group = pointer(h, part * LANES * block.number)
        pack_columns(h_group, block.number, left, part * LANES, row, word, block.spare)
    elif k < width:
        for n in range(block.number):
            place, some = n * x_row + k, block.features - k
            write(block.x, n * LANES, read(x, place) if some >= LANES else read_some(x, place, some))
        pack_columns(
            block.x, block.number, left, whole_block(block.d_gates, cells) + k, row, word, block.spare
        )
    else:
        column = (k - width) // LANES * PANEL
        d_gates = pointer(block.d_gates, left_column(block.d_gates, column))
        right = pointer(block.right, column * block.depth + first_word * PANEL)
        pack_rows(d_gates, block.number, left_row(block.d_gates, block.columns), PANEL, right)


@inline
def _multiply_and_pack(block, step, weights, wanted, h, x, x_row):
    """Multiply a step's gates' gradients by packed weights, and pack what `_add_weight_gradients` needs.

    The products' matrix unit and the packing's vector unit work at the same time.

    Args:
        wanted: columns of the product: `block.wanted`, or 0.
    """
    left = block_left(block.d_words, block.words, 0)
    rows, panels = whole_rows(block.d_gates, block.number), Panels(weights, 0, block.words)
    sums = Sums(block.d_operands, PANEL, PANEL * block_rows(block.d_gates))
    groups = (block.columns // GATES + round_up(block.features, LANES)) // LANES
    parts = groups + block.columns // PANEL
    for part in range(parts):
        multiply_part(part, parts, left, rows, block.words, panels, block.zeros, sums, wanted)
        _pack_part(block, part, step, h, x, x_row)


@inline
def _add_input_gradients(block, d_x, d_x_row, is_first):
    """Write a step's gradients of the inputs to d_x, or add them where the other direction was before."""
    features, cells, rows = block.features, block.columns // GATES, block_rows(block.d_gates)
    whole = features // LANES * LANES
    for n in range(block.number):
        place = n * d_x_row
        for k in range(0, whole, LANES):
            value = read(block.d_operands, in_panels(cells + k, rows) + n * PANEL)
            write(d_x, place + k, value if is_first else value + read(d_x, place + k))
        if whole < features:
            value = read(block.d_operands, in_panels(cells + whole, rows) + n * PANEL)
            if not is_first:
                value = value + read_some(d_x, place + whole, features - whole)
            write_some(d_x, place + whole, value, features - whole)


@inner
def backward(plan, x, transposed, kept, mask, d_y, d_bias, d_weights, d_x):
    """The gradient of `forward`; all arguments from `d_bias` on are written.

    Args:
        plan, x, kept, mask: as in `forward`.
        transposed: packed, of each direction: values that hold the words of
            `(4 * cells, cells + padded features)`.
        d_y: of y.
        d_bias: float32 `(directions, 4 * cells)`.
        d_weights: float32 `(directions, panels, cells + padded features, PANEL)`.
        d_x: float32 `(batch, time, features)`, or `(0, ...)` to leave it out.
    """
    weights, tile_state = as_words(transposed), begin_products(transposed)
    rows, scratch = block_rows(kept.gates), _scratch(plan, x.shape[2], kept, d_bias)
    if len(x) % rows > 0:
        scratch.right[:] = 0
    d_bias[:] = 0
    d_weights[:] = 0
    for d in range(len(d_bias)):
        for start in range(0, len(x), rows):
            number = min(rows, len(x) - start)
            scratch.d_operands[:] = 0
            scratch.d_c[:] = 0
            scratch.d_past[:] = 0
            block = _block(scratch, number, x.shape[2], len(d_x) > 0)
            _run_steps_back(d, start, plan, x, weights, kept, mask, d_y, block, d_bias, d_x)
            in_step = words_in(kept.gates, number)
            # Before step 0 the states are zero.
            _add_weight_gradients(in_step, plan.steps[d] * in_step, x.shape[2], scratch, d_weights[d])
    end_products(tile_state)


@inner
def _scratch(plan, features, kept, floats):
    cells, columns = kept.h.shape[3], kept.gates.shape[3]
    block, width = block_rows(kept.gates), round_up(features, LANES)
    depth = plan.steps[0] * words_in(kept.gates, block)
    values = depth * values_in_word(kept.gates)
    left_rows = whole_block(kept.gates, cells) + whole_block(kept.gates, width)
    return _Scratch(
        aligned(block * -(-(cells + width) // PANEL) * PANEL, floats),
        aligned(block * cells, floats),
        aligned(block * cells, floats),
        aligned(block * columns, kept.gates).reshape((block, columns)),
        aligned(block * LANES, kept.gates),
        as_words(aligned(LANES * LANES * values_in_word(kept.gates), kept.gates)),
        as_words(aligned(left_rows * values, kept.gates)),
        as_words(aligned(columns * values, kept.gates)),
        np.zeros(cells + width, np.float32),
    )


@inner
def _block(scratch, number, features, with_x):
    columns, d_gates, words = scratch.d_gates.shape[1], scratch.d_gates, as_words(scratch.d_gates)
    # Whole panels, as the weights are packed.
    cells, width, panel = columns // GATES, round_up(features, LANES), PANEL
    return _Block(
        pointer(scratch.d_operands, (0,)),
        pointer(scratch.d_c, (0,)),
        pointer(scratch.d_past, (0,)),
        pointer(d_gates, (0, 0)),
        pointer(words, (0, 0)),
        pointer(scratch.x, (0,)),
        pointer(scratch.spare, (0,)),
        pointer(scratch.left, (0,)),
        pointer(scratch.right, (0,)),
        pointer(scratch.zeros, (0,)),
        number,
        columns,
        features,
        words.shape[1],
        scratch.right.size // columns,
        cells + width if with_x else min(cells + width, -(-cells // panel) * panel),
    )


@inner
def _run_steps_back(d, start, plan, x, weights, kept, mask, d_y, block, d_bias, d_x):
    """The steps of one direction for a block, last to first; fills the operands of the weights' gradients."""
    _, time, features = x.shape
    cells, columns, number = block.columns // GATES, block.columns, block.number
    share = ONE / np.float32(plan.steps[0]) if plan.returns == MEAN else ONE
    # Not in the loops: Numba counts references to an array whenever it is taken out of a tuple.
    h_kept, gates_start = kept.h, pointer(kept.gates, (0, 0, 0, 0))
    h_start, c_start = pointer(h_kept, (0, 0, 0, 0)), pointer(kept.c, (0, 0, 0, 0))
    for step in range(plan.steps[d] - 1, -1, -1):
        how = How(
            number,
            plan.returns != END or step + 1 == plan.steps[d],
            plan.returns == END,
            share,
            d_y.shape[1] * d_y.shape[2],
            left_row(block.d_gates, columns),
            left_column(block.d_gates, 2 * LANES),
            time,
        )
        t, t_before = time_of(d, step, time), time_of(d, max(step - 1, 0), time)
        y_t, y_before = (t, t_before) if plan.returns == SEQUENCE else (0, 0)
        old, new = kept_at(d, step, start, h_kept), kept_at(d, step + 1, start, h_kept)
        before = kept_at(d, max(step - 1, 0), start, h_kept)
        first = Group(
            pointer(gates_start, GATES * old),
            pointer(c_start, old),
            pointer(c_start, new),
            block.d_operands,
            pointer(d_y, (start, y_t, d * cells)),
            block.d_c,
            block.d_past,
            block.d_gates,
            pointer(d_bias, (d, 0)),
            pointer(mask, (start, t)),
        )
        gates_before, c_before = pointer(gates_start, GATES * before), pointer(c_start, before)
        d_y_before = pointer(d_y, (start, y_before, d * cells))
        gate_gradients_of_step(first, gates_before, c_before, d_y_before, how, cells, len(mask) > 0)
        wanted = block.wanted if step > 0 or len(d_x) > 0 else 0
        h, x_t, x_row = pointer(h_start, old), pointer(x, (start, t, 0)), time * features
        _multiply_and_pack(block, step, pointer(weights, (d, 0)), wanted, h, x_t, x_row)
        if len(d_x) > 0:
            _add_input_gradients(block, pointer(d_x, (start, t, 0)), x_row, d == 0 or t >= plan.steps[0])


@inner
def _add_weight_gradients(skip, used, features, scratch, d_weights):
    """Add the products of operands and gates' gradients, summed over samples and steps.

    Args:
        skip: words at the beginning that are 0 in the hidden states' part; used: words that are filled.
    """
    columns = scratch.d_gates.shape[1]
    cells, depth = columns // GATES, scratch.right.size // columns
    row, word = left_strides(scratch.d_gates, cells + round_up(features, LANES), depth)
    right, panel = pointer(scratch.right, (0,)), PANEL * d_weights.shape[1]
    multiply(
        Left(pointer(scratch.left, (skip * word,)), row, word),
        cells,
        used - skip,
        Panels(right, skip, depth),
        None,
        Sums(pointer(d_weights, (0, 0, 0)), PANEL, panel),
        columns,
    )
    multiply(
        Left(pointer(scratch.left, (whole_block(scratch.d_gates, cells) * row,)), row, word),
        whole_rows(scratch.left, features),
        used,
        Panels(right, 0, depth),
        None,
        Sums(pointer(d_weights, (0, cells, 0)), PANEL, panel),
        columns,
    )
