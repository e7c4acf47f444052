"""The gradient of the recurrence, for a block of samples at a time: see `recurrence.py`."""

from typing import NamedTuple

import numpy as np

from fastlstm.gate_gradients import Group, StepConfig, step_gradients
from fastlstm.jit import inline, inner
from fastlstm.matmul import (
    TILE,
    Lhs,
    Sums,
    begin_products,
    block_rows,
    end_products,
    multiply,
    on_tiles,
    pack_rows,
    round_up,
    stack,
    stacked_lhs,
    state_column,
    state_lhs,
    values_in_word,
    words_in,
)
from fastlstm.recurrence import END, GATES, MEAN, ONE, SEQUENCE, saved_at, time_of
from fastlstm.simd import FOUR, LANES, aligned, as_words, load, load_some, pointer, store, store_some


class _Block(NamedTuple):
    """Sizes of a block, and pointers to its memory.

    Attributes:
        d_states: of the hidden states, and of the inputs if wanted, float32 `(groups, block, LANES)`.
        d_c, d_past: float32 `(cells / LANES, block, LANES)`: of the cell states; of the last hidden states of
            samples that have ended.
        d_gates: one step's gradients of the gates' arguments, values `(block, 4 * cells)` in the layout of
            states.
        x: values of a group of one step's inputs `(block, LANES)`.
        spare: words `(LANES, LANES)`.
        lhs, rhs: words of the weights' gradients' operands, filled step by step: `(rows, depth)` as `stack`
            writes them, and `(columns / LANES, depth, LANES)`.
        zeros: float32 `(LANES)`.
        number, rows: samples in the block, and rounded up to a multiple of FOUR.
        columns: `4 * cells`.
        words: of each step in the weights' gradients' operands.
        depth: words of all steps for which there is room.
        wanted: columns of d_states.
    """

    d_states: int
    d_c: int
    d_past: int
    d_gates: int
    x: int
    spare: int
    lhs: int
    rhs: int
    zeros: int
    number: int
    rows: int
    columns: int
    features: int
    words: int
    depth: int
    wanted: int


@inline
def _stacks(block):
    """The left operands of the weights' gradients: of the hidden states, and of the inputs."""
    cells, side = block.columns // GATES, block_rows(block.d_gates) if on_tiles(block.d_gates) else LANES
    rows = round_up(cells, side) + round_up(block.features, side)
    states = stacked_lhs(block.d_gates, block.lhs, rows, block.depth)
    inputs = pointer(block.lhs, round_up(cells, side) * states.row_stride)
    return states, Lhs(inputs, states.row_stride, states.word_stride, 0)


@inline
def _pack_part(block, part, step, h, x, x_stride):
    """Pack a part of a step's operands of the weights' gradients.

    The first parts are groups of the states and inputs, on the left; the others groups of the gates'
    gradients, on the right.
    """
    cells, width, word = block.columns // GATES, round_up(block.features, LANES), step * block.words
    column = part * LANES
    states, inputs = _stacks(block)
    if column < cells:
        stack(pointer(h, column * block.rows), block.rows, LANES, states, column, word, block.spare)
    elif column < cells + width:
        row = column - cells
        for n in range(block.number):
            store(block.x, n * LANES, load_some(x, n * x_stride + row, block.features - row))
        stack(block.x, block.rows, LANES, inputs, row, word, block.spare)
    else:
        column -= cells + width
        d_gates = pointer(block.d_gates, state_column(block.d_gates, column))
        pack_rows(d_gates, block.rows, TILE, pointer(block.rhs, column * block.depth + word * LANES), LANES)


@inline
def _multiply_and_pack(block, step, weights, wanted, h, x, x_stride):
    """Multiply a step's gates' gradients by packed weights, and pack what `_add_weight_gradients` needs.

    The products' matrix unit and the packing's vector unit work at the same time.

    Args:
        wanted: columns of the product: `block.wanted`, or 0.
    """
    words = block.columns // values_in_word(block.d_gates)
    lhs, zeros = state_lhs(block.d_gates, 0), Sums(block.zeros, 0, 0)
    out = Sums(block.d_states, LANES, LANES * block_rows(block.d_gates))
    parts = (block.columns // GATES + round_up(block.features, LANES) + block.columns) // LANES
    for part in range(parts):
        multiply(part, parts, lhs, block.rows, words, weights, words * LANES, zeros, out, wanted)
        _pack_part(block, part, step, h, x, x_stride)


@inline
def _add_input_gradients(block, d_x, d_x_stride, is_first):
    """Write a step's gradients of the inputs to d_x, or add them where the other direction was before."""
    features, first = block.features, block.columns // GATES * block_rows(block.d_gates)
    for k in range(0, features, LANES):
        for n in range(block.number):
            value = load(block.d_states, first + k * block_rows(block.d_gates) + n * LANES)
            place = n * d_x_stride + k
            if not is_first:
                value = value + load_some(d_x, place, features - k)
            store_some(d_x, place, value, features - k)


@inner
def backward(plan, x, transposed, saved, mask, d_y, d_bias, d_weights, d_x):
    """The gradient of `forward`; all arguments from `d_bias` on are written.

    Args:
        plan, x, saved, mask: as in `forward`.
        transposed: of each direction: values that hold the right operand of
            `(4 * cells, cells + padded features)`.
        d_y: of y.
        d_bias: float32 `(directions, 4 * cells)`.
        d_weights: float32 `(directions, 4 * cells / LANES, cells + padded features, LANES)`.
        d_x: float32 `(batch, time, features)`, or `(0, ...)` to leave it out.
    """
    values, cells, columns = saved.gates, saved.h.shape[3], saved.gates.shape[3]
    rows, features = block_rows(transposed), x.shape[2]
    width, words = round_up(features, LANES), words_in(transposed, rows)
    depth = plan.steps[0] * words * values_in_word(values)
    d_states, zeros = aligned(rows * (cells + width), d_bias), np.zeros(LANES, np.float32)
    d_c, d_past = aligned(rows * cells, d_bias), aligned(rows * cells, d_bias)
    d_gates, inputs = aligned(rows * columns, values), aligned(rows * LANES, values)
    spare = aligned(LANES * LANES * values_in_word(values), values)
    lhs, rhs = (
        aligned((round_up(cells, rows) + round_up(width, rows)) * depth, values),
        aligned(columns * depth, values),
    )
    tile_state = begin_products(transposed)  # after the allocations, which may fail
    d_bias[:] = 0
    d_weights[:] = 0
    for d in range(len(d_bias)):
        for start in range(0, len(x), rows):
            d_states[:] = 0
            d_c[:] = 0
            d_past[:] = 0
            number = min(rows, len(x) - start)
            block = _Block(
                pointer(d_states, (0,)),
                pointer(d_c, (0,)),
                pointer(d_past, (0,)),
                pointer(d_gates, (0,)),
                pointer(inputs, (0,)),
                as_words(pointer(spare, (0,))),
                as_words(pointer(lhs, (0,))),
                as_words(pointer(rhs, (0,))),
                pointer(zeros, (0,)),
                number,
                round_up(number, FOUR),
                columns,
                features,
                words if on_tiles(transposed) else words_in(transposed, round_up(number, FOUR)),
                plan.steps[0] * words,
                cells + width if len(d_x) > 0 else cells,
            )
            _run_steps_back(d, start, plan, x, transposed, saved, mask, d_y, block, d_bias, d_x)
            _add_weight_gradients(plan.steps[d], block, d_weights[d])
    end_products(tile_state)
    # Pointers do not keep arrays alive.
    d_states[0], d_c[0], d_past[0], d_gates[0], inputs[0], spare[0], lhs[0], rhs[0], zeros[0] = (0,) * 9


@inner
def _run_steps_back(d, start, plan, x, transposed, saved, mask, d_y, block, d_bias, d_x):
    """The steps of one direction for a block, last to first; fills the operands of the weights' gradients."""
    _, time, features = x.shape
    cells = block.columns // GATES
    # Not in the loops: Numba counts references to an array whenever it is taken out of a tuple.
    saved_h, first_gates = saved.h, pointer(saved.gates, (0, 0, 0, 0))
    first_h, first_c = pointer(saved_h, (0, 0, 0, 0)), pointer(saved.c, (0, 0, 0, 0))
    weights = as_words(pointer(transposed, (d, 0)))
    for step in range(plan.steps[d] - 1, -1, -1):
        config = StepConfig(
            block.number,
            block.rows,
            plan.returns != END or step + 1 == plan.steps[d],
            plan.returns == END,
            len(mask) > 0,
            ONE / np.float32(plan.steps[0]) if plan.returns == MEAN else ONE,
            d_y.shape[1] * d_y.shape[2],
            time,
        )
        t, t_before = time_of(d, step, time), time_of(d, max(step - 1, 0), time)
        y_t, y_before = (t, t_before) if plan.returns == SEQUENCE else (0, 0)
        old, new = (saved_at(d, step, start, saved_h), saved_at(d, step + 1, start, saved_h))
        before = saved_at(d, max(step - 1, 0), start, saved_h)
        first = Group(
            pointer(first_gates, GATES * old),
            pointer(first_c, old),
            pointer(first_c, new),
            block.d_states,
            pointer(d_y, (start, y_t, d * cells)),
            block.d_c,
            block.d_past,
            block.d_gates,
            pointer(d_bias, (d, 0)),
            pointer(mask, (start, t)),
        )
        gates_before, c_before = (pointer(first_gates, GATES * before), pointer(first_c, before))
        d_y_before = pointer(d_y, (start, y_before, d * cells))
        step_gradients(first, gates_before, c_before, d_y_before, config, cells)
        wanted = block.wanted if step > 0 or len(d_x) > 0 else 0
        h, x_t, x_stride = (pointer(first_h, old), pointer(x, (start, t, 0)), time * features)
        _multiply_and_pack(block, step, weights, wanted, h, x_t, x_stride)
        if len(d_x) > 0:
            is_first = d == 0 or t >= plan.steps[0]
            _add_input_gradients(block, pointer(d_x, (start, t, 0)), x_stride, is_first)


@inner
def _add_weight_gradients(steps, block, d_weights):
    """Add the products of states and gates' gradients, summed over samples and steps.

    Args:
        steps: that are packed.
        block: see `_Block`.
        d_weights: of one direction, see `backward`.
    """
    cells, stride, used = block.columns // GATES, block.depth * LANES, steps * block.words
    states, inputs = _stacks(block)
    # Before step 0 the states are zero.
    states = Lhs(
        pointer(states.words, block.words * states.word_stride), states.row_stride, states.word_stride, 0
    )
    rhs = pointer(block.rhs, block.words * LANES)
    out = Sums(pointer(d_weights, (0, 0, 0)), LANES, d_weights.shape[1] * LANES)
    multiply(0, 1, states, cells, used - block.words, rhs, stride, out, out, block.columns)
    out = Sums(pointer(d_weights, (0, cells, 0)), LANES, d_weights.shape[1] * LANES)
    rows = round_up(block.features, FOUR)
    multiply(0, 1, inputs, rows, used, block.rhs, stride, out, out, block.columns)
