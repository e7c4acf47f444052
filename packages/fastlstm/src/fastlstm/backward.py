"""The gradient of the recurrence, for a block of samples at a time: see `recurrence.py`."""

from typing import NamedTuple

import numpy as np

from fastlstm.gate_gradients import Step, step_gradients
from fastlstm.jit import inline, inner
from fastlstm.matmul import (
    Accumulators,
    Lhs,
    block_rows,
    multiply,
    on_tiles,
    pack_rows,
    round_up,
    stack,
    stacked_lhs,
    state_column,
    state_lhs,
    values_in_word,
)
from fastlstm.recurrence import GATES, LAST, MEAN, ONE, SEQUENCE, saved_at, time_of
from fastlstm.simd import LANES, SAMPLES, TILE, aligned, as_words, load, load_some, pointer, store, store_some


class _Operands(NamedTuple):
    """Operands of the weights' gradients, filled step by step.

    Attributes:
        states, inputs: left operands, see `stacked_lhs`: hidden states, and inputs.
        gates: right operand, pointer to words `(4 * cells / LANES, depth, LANES)`.
        depth, words: of all steps for which there is room, and of a step.
        x: pointer to values of a group of one step's inputs `(block, LANES)`.
        spare: pointer to words `(LANES, LANES)`.
        cells, features: numbers.
    """

    states: Lhs
    inputs: Lhs
    gates: int
    depth: int
    words: int
    x: int
    spare: int
    cells: int
    features: int


@inline
def _pack_part(part, step, operands, word, h, x, x_stride):
    """Pack a part of a step's operands of the weights' gradients, from a word on.

    The first parts are groups of the states and inputs, on the left; the others groups of the gates'
    gradients, on the right.
    """
    column, end = part * LANES, operands.cells + round_up(operands.features, LANES)
    if column < operands.cells:
        stack(pointer(h, column * step.rows), step.rows, operands.states, column, word, operands.spare)
    elif column < end:
        row = column - operands.cells
        for n in range(step.number):
            store(operands.x, n * LANES, load_some(x, n * x_stride + row, operands.features - row))
        stack(operands.x, step.rows, operands.inputs, row, word, operands.spare)
    else:
        target = pointer(operands.gates, (column - end) * operands.depth + word * LANES)
        d_gates = pointer(step.d_gates, state_column(step.d_gates, column - end))
        pack_rows(d_gates, step.rows, TILE, target, LANES)


@inline
def _multiply_and_pack(step, operands, weights, zeros, wanted, word, h, x, x_stride):
    """Multiply a step's gates' gradients by packed weights, and pack what `_add_weight_gradients` needs.

    The products' matrix unit and the packing's vector unit work at the same time.

    Args:
        weights, zeros: pointers to the packed ones, and to LANES zeros.
        wanted: columns of the product.
        others: see `_pack_part`.
    """
    columns = GATES * operands.cells
    words = columns // values_in_word(step.d_gates)
    lhs, start = state_lhs(step.d_gates, 0), Accumulators(zeros, 0, 0)
    out = Accumulators(step.d_h, LANES, LANES * block_rows(step.d_gates))
    parts = (operands.cells + round_up(operands.features, LANES) + columns) // LANES
    for part in range(parts):
        multiply(part, parts, lhs, step.rows, words, weights, words * LANES, start, out, wanted)
        _pack_part(part, step, operands, word, h, x, x_stride)


@inline
def _add_input_gradients(step, operands, d_x, d_x_stride, is_first):
    """Write a step's gradients of the inputs to d_x, or add them where the other direction was before."""
    features, block = operands.features, block_rows(step.gates)
    for n in range(step.number):
        for k in range(0, features, LANES):
            value = load(step.d_h, (operands.cells + k) * block + n * LANES)
            place = n * d_x_stride + k
            if not is_first:
                value = value + load_some(d_x, place, features - k)
            store_some(d_x, place, value, features - k)


@inner
def backward(plan, x, transposed, saved, mask, d_y, d_bias, d_weights, d_x):
    """The gradient of `forward`: written to d_x, added to d_bias and d_weights.

    Args:
        plan, x, saved, mask: as in `forward`.
        transposed: of each direction: values that hold the right operand of
            `(4 * cells, cells + padded features)`.
        d_y: of y.
        d_bias: float32 `(directions, 4 * cells)`.
        d_weights: float32 `(directions, 4 * cells / LANES, cells + padded features, LANES)`.
        d_x: float32 `(batch, time, features)`, or `(0, ...)` to leave it out.
    """
    values, cells, features = saved.gates, saved.h.shape[3], x.shape[2]
    block, in_word, with_x = block_rows(values), values_in_word(values), len(d_x) > 0
    # Few steps share a product for the weights' gradients, so that its operands fit in the L2 cache. AMX
    # probably needs more, because each product also reads and writes the gradients.
    steps = min(plan.steps[0], 16 if on_tiles(values) else 8)
    width, depth = round_up(features, LANES), steps * block // in_word
    # On AMX the left operands are whole tiles.
    rows = round_up(cells, TILE) + round_up(features, TILE)
    # Of a block: d_h, d_c, d_past, and LANES zeros.
    states = aligned(block * (3 * cells + width) + LANES, d_bias)
    d_h = pointer(states, (0,))
    d_c = pointer(d_h, block * (cells + width))
    d_past = pointer(d_c, block * cells)
    zeros = pointer(d_past, block * cells)
    d_gates, inputs = aligned(GATES * cells * block, values), aligned(block * LANES, values)
    lhs, rhs = aligned(rows * depth * in_word, values), aligned(GATES * cells * depth * in_word, values)
    spare = aligned(LANES * LANES * in_word, values)
    left = stacked_lhs(values, as_words(pointer(lhs, (0,))), rows, depth)
    inputs_at = pointer(left.words, round_up(cells, TILE) * left.row_stride)
    inputs[:] = 0
    if on_tiles(values) and len(x) % block > 0:
        rhs[:] = 0  # tiles also multiply the rows that the last block lacks
    # Hoisted out of the loops: taking an array out of a tuple updates its reference count.
    saved_gates, saved_c = pointer(saved.gates, (0, 0, 0, 0)), pointer(saved.c, (0, 0, 0, 0))
    saved_h, shape = pointer(saved.h, (0, 0, 0, 0)), saved.h.shape
    for d in range(len(d_bias)):
        for start in range(0, len(x), block):
            states[:] = 0
            number = min(block, len(x) - start)
            operands = _Operands(
                left,
                Lhs(inputs_at, left.row_stride, left.word_stride, 0),
                as_words(pointer(rhs, (0,))),
                depth,
                (block if on_tiles(values) else round_up(number, SAMPLES)) // in_word,
                pointer(inputs, (0,)),
                as_words(pointer(spare, (0,))),
                cells,
                features,
            )
            for step in range(plan.steps[d] - 1, -1, -1):
                old, new = saved_at(d, step, start, shape), saved_at(d, step + 1, start, shape)
                t = time_of(d, step, x.shape[1])
                settings = Step(
                    number,
                    round_up(number, SAMPLES),
                    plan.returns != LAST or step + 1 == plan.steps[d],
                    plan.returns == LAST,
                    ONE / np.float32(plan.steps[0]) if plan.returns == MEAN else ONE,
                    d_y.shape[1] * d_y.shape[2],
                    x.shape[1] if len(mask) > 0 else 0,
                    new - old,
                    pointer(saved_gates, GATES * old),
                    pointer(saved_c, old),
                    pointer(saved_c, new),
                    d_h,
                    pointer(d_y, (start, t if plan.returns == SEQUENCE else 0, d * cells)),
                    d_c,
                    d_past,
                    pointer(d_gates, (0,)),
                    pointer(d_bias, (d, 0)),
                    pointer(mask, (start, t)),
                )
                h = pointer(saved_h, old)
                weights, x_t = as_words(pointer(transposed, (d, 0))), pointer(x, (start, t, 0))
                wanted = cells + width if with_x else cells if step > 0 else 0
                x_stride, word = x.shape[1] * features, step % steps * operands.words
                step_gradients(settings, cells)
                _multiply_and_pack(settings, operands, weights, zeros, wanted, word, h, x_t, x_stride)
                if with_x:
                    is_first = d == 0 or t >= plan.steps[0]
                    _add_input_gradients(settings, operands, pointer(d_x, (start, t, 0)), x_stride, is_first)
                if step % steps == 0:
                    _add_weight_gradients(step, min(step + steps, plan.steps[d]), operands, d_weights[d])
    # Pointers do not keep arrays alive.
    states[0], d_gates[0], inputs[0], spare[0], lhs[0], rhs[0] = (0,) * 6


@inner
def _add_weight_gradients(first, end, operands, d_weights):
    """Add the products of states and gates' gradients, summed over samples and over steps from first to end.

    Args:
        operands: see `_Operands`.
        d_weights: of one direction, see `backward`.
    """
    columns, depth, used = GATES * operands.cells, operands.depth * LANES, (end - first) * operands.words
    skip = operands.words if first == 0 else 0  # before step 0 the states are zero
    words = pointer(operands.states.words, skip * operands.states.word_stride)
    states = Lhs(words, operands.states.row_stride, operands.states.word_stride, 0)
    gates, stride = pointer(operands.gates, skip * LANES), d_weights.shape[1] * LANES
    out = Accumulators(pointer(d_weights, (0, 0, 0)), LANES, stride)
    multiply(0, 1, states, operands.cells, used - skip, gates, depth, out, out, columns)
    out = Accumulators(pointer(d_weights, (0, operands.cells, 0)), LANES, stride)
    rows = round_up(operands.features, SAMPLES)
    multiply(0, 1, operands.inputs, rows, used, operands.gates, depth, out, out, columns)
