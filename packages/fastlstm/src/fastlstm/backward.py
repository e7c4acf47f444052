"""The gradient of the recurrence, for a block of samples at a time: see `recurrence.py`."""

from typing import NamedTuple

import numpy as np

from fastlstm.gate_gradients import Group, StepConfig, step_gradients
from fastlstm.jit import inline, inner
from fastlstm.matmul import (
    PANEL,
    Accumulators,
    Lhs,
    PackedRhs,
    begin_products,
    block_lhs,
    block_rows,
    end_products,
    lhs_column,
    lhs_stride,
    multiply,
    multiply_part,
    panel_column,
    round_up,
    tile_depth,
    tile_rows,
    values_in_word,
    words_in,
)
from fastlstm.packing import pack_columns, pack_rows, stacked_lhs_strides
from fastlstm.recurrence import END, GATES, MEAN, ONE, SEQUENCE, saved_at, time_of
from fastlstm.simd import LANES, aligned, as_words, load, load_some, pointer, store, store_some


class _Scratch(NamedTuple):
    """Memory of a block.

    Attributes:
        d_operands: of the hidden states, and of the inputs if wanted, float32 `(panels, block, PANEL)`.
        d_c, d_past: float32 `(cells / LANES, block, LANES)`: of the cell states; of the last hidden states of
            samples that have ended.
        d_gates: one step's gradients of the gates' arguments, values `(block, 4 * cells)`, a left operand.
        x: values of a group of one step's inputs `(block, LANES)`.
        spare: values that hold words `(LANES, LANES)`.
        lhs, rhs: values of the weights' gradients' operands, filled step by step.
        zeros: float32.
    """

    d_operands: np.ndarray
    d_c: np.ndarray
    d_past: np.ndarray
    d_gates: np.ndarray
    x: np.ndarray
    spare: np.ndarray
    lhs: np.ndarray
    rhs: np.ndarray
    zeros: np.ndarray


class _Block(NamedTuple):
    """Pointers to the arrays of `_Scratch`, and sizes; hot loops take no arrays out of tuples.

    Attributes:
        number: samples in the block.
        columns: `4 * cells`.
        depth: words of a row of the weights' gradients' operands.
        wanted: columns of d_operands.
    """

    d_operands: int
    d_c: int
    d_past: int
    d_gates: int
    x: int
    spare: int
    lhs: int
    rhs: int
    zeros: int
    number: int
    columns: int
    features: int
    depth: int
    wanted: int


@inline
def _pack_part(block, part, step, h, x, x_stride):
    """Pack a part of a step's operands of the weights' gradients.

    The first parts are groups of the states and inputs, on the left; the others panels of the gates'
    gradients, on the right.
    """
    cells, width = block.columns // GATES, round_up(block.features, LANES)
    row_stride, word_stride = stacked_lhs_strides(block.d_gates, cells + width, block.depth)
    first_word, k = step * words_in(block.d_gates, block.number), part * LANES - cells
    lhs, spare = pointer(block.lhs, first_word * word_stride), block.spare
    if k < 0:
        group = pointer(h, part * LANES * block.number)
        pack_columns(group, block.number, lhs, part * LANES, row_stride, word_stride, spare)
    elif k < width:
        for n in range(block.number):
            place, some = n * x_stride + k, block.features - k
            store(block.x, n * LANES, load(x, place) if some >= LANES else load_some(x, place, some))
        row = round_up(cells, tile_rows(block.d_gates)) + k
        pack_columns(block.x, block.number, lhs, row, row_stride, word_stride, spare)
    else:
        column = (k - width) // LANES * PANEL
        d_gates = pointer(block.d_gates, lhs_column(block.d_gates, column))
        rhs = pointer(block.rhs, column * block.depth + first_word * PANEL)
        pack_rows(d_gates, block.number, lhs_stride(block.d_gates, block.columns), PANEL, rhs)


@inline
def _multiply_and_pack(block, step, weights, wanted, h, x, x_stride):
    """Multiply a step's gates' gradients by packed weights, and pack what `_add_weight_gradients` needs.

    The products' matrix unit and the packing's vector unit work at the same time.

    Args:
        wanted: columns of the product: `block.wanted`, or 0.
    """
    words = block.columns // values_in_word(block.d_gates)
    lhs, rhs = (block_lhs(as_words(block.d_gates), words, 0), PackedRhs(weights, 0, words))
    rows = round_up(block.number, tile_depth(block.d_gates))
    out = Accumulators(block.d_operands, PANEL, PANEL * block_rows(block.d_gates))
    groups = (block.columns // GATES + round_up(block.features, LANES)) // LANES
    parts = groups + block.columns // PANEL
    for part in range(parts):
        multiply_part(part, parts, lhs, rows, words, rhs, block.zeros, out, wanted)
        _pack_part(block, part, step, h, x, x_stride)


@inline
def _add_input_gradients(block, d_x, d_x_stride, is_first):
    """Write a step's gradients of the inputs to d_x, or add them where the other direction was before."""
    features, cells, rows = (block.features, block.columns // GATES, block_rows(block.d_gates))
    whole = features // LANES * LANES
    for n in range(block.number):
        place = n * d_x_stride
        for k in range(0, whole, LANES):
            value = load(block.d_operands, panel_column(cells + k, rows) + n * PANEL)
            store(d_x, place + k, value if is_first else value + load(d_x, place + k))
        if whole < features:
            value = load(block.d_operands, panel_column(cells + whole, rows) + n * PANEL)
            if not is_first:
                value = value + load_some(d_x, place + whole, features - whole)
            store_some(d_x, place + whole, value, features - whole)


@inner
def backward(plan, x, transposed, saved, mask, d_y, d_bias, d_weights, d_x):
    """The gradient of `forward`; all arguments from `d_bias` on are written.

    Args:
        plan, x, saved, mask: as in `forward`.
        transposed: packed, of each direction: values that hold the words of
            `(4 * cells, cells + padded features)`.
        d_y: of y.
        d_bias: float32 `(directions, 4 * cells)`.
        d_weights: float32 `(directions, panels, cells + padded features, PANEL)`.
        d_x: float32 `(batch, time, features)`, or `(0, ...)` to leave it out.
    """
    rows, features = block_rows(transposed), x.shape[2]
    scratch = _scratch(plan, features, saved, d_bias)
    tile_state = begin_products(transposed)  # after the allocations, which may fail
    if len(x) % rows > 0:
        scratch.rhs[:] = 0
    d_bias[:] = 0
    d_weights[:] = 0
    for d in range(len(d_bias)):
        for start in range(0, len(x), rows):
            number = min(rows, len(x) - start)
            scratch.d_operands[:] = 0
            scratch.d_c[:] = 0
            scratch.d_past[:] = 0
            block = _block(scratch, number, features, len(d_x) > 0)
            _run_steps_back(d, start, plan, x, transposed, saved, mask, d_y, block, d_bias, d_x)
            step_words = words_in(transposed, number)
            # Before step 0 the states are zero.
            _add_weight_gradients(step_words, plan.steps[d] * step_words, block, d_weights[d])
    end_products(tile_state)


@inner
def _scratch(plan, features, saved, floats):
    values, cells, columns = saved.gates, saved.h.shape[3], saved.gates.shape[3]
    block, width = block_rows(values), round_up(features, LANES)
    depth = plan.steps[0] * words_in(values, block) * values_in_word(values)
    lhs_rows = round_up(cells, tile_rows(values)) + round_up(width, tile_rows(values))
    return _Scratch(
        aligned(block * round_up(cells + width, PANEL), floats),
        aligned(block * cells, floats),
        aligned(block * cells, floats),
        aligned(block * columns, values),
        aligned(block * LANES, values),
        aligned(LANES * LANES * values_in_word(values), values),
        aligned(lhs_rows * depth, values),
        aligned(columns * depth, values),
        np.zeros(cells + width, np.float32),
    )


@inner
def _block(scratch, number, features, with_x):
    columns = len(scratch.d_gates) // block_rows(scratch.d_gates)
    cells, width = columns // GATES, round_up(features, LANES)
    return _Block(
        pointer(scratch.d_operands, (0,)),
        pointer(scratch.d_c, (0,)),
        pointer(scratch.d_past, (0,)),
        pointer(scratch.d_gates, (0,)),
        pointer(scratch.x, (0,)),
        as_words(pointer(scratch.spare, (0,))),
        as_words(pointer(scratch.lhs, (0,))),
        as_words(pointer(scratch.rhs, (0,))),
        pointer(scratch.zeros, (0,)),
        number,
        columns,
        features,
        len(scratch.rhs) // values_in_word(scratch.rhs) // columns,
        # Whole panels, as the weights are packed.
        cells + width if with_x else min(cells + width, round_up(cells, PANEL)),
    )


@inner
def _run_steps_back(d, start, plan, x, transposed, saved, mask, d_y, block, d_bias, d_x):
    """The steps of one direction for a block, last to first; fills the operands of the weights' gradients."""
    _, time, features = x.shape
    cells, columns, number = block.columns // GATES, block.columns, block.number
    share = ONE / np.float32(plan.steps[0]) if plan.returns == MEAN else ONE
    # Not in the loops: Numba counts references to an array whenever it is taken out of a tuple.
    saved_h, first_gates = saved.h, pointer(saved.gates, (0, 0, 0, 0))
    first_h, first_c = pointer(saved_h, (0, 0, 0, 0)), pointer(saved.c, (0, 0, 0, 0))
    weights = as_words(pointer(transposed, (d, 0)))
    for step in range(plan.steps[d] - 1, -1, -1):
        config = StepConfig(
            number,
            plan.returns != END or step + 1 == plan.steps[d],
            plan.returns == END,
            share,
            d_y.shape[1] * d_y.shape[2],
            lhs_stride(block.d_gates, columns),
            lhs_column(block.d_gates, 2 * LANES),
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
            block.d_operands,
            pointer(d_y, (start, y_t, d * cells)),
            block.d_c,
            block.d_past,
            block.d_gates,
            pointer(d_bias, (d, 0)),
            pointer(mask, (start, t)),
        )
        gates_before, c_before = (pointer(first_gates, GATES * before), pointer(first_c, before))
        d_y_before = pointer(d_y, (start, y_before, d * cells))
        step_gradients(first, gates_before, c_before, d_y_before, config, cells, len(mask) > 0)
        wanted = block.wanted if step > 0 or len(d_x) > 0 else 0
        h, x_t, x_stride = (pointer(first_h, old), pointer(x, (start, t, 0)), time * features)
        _multiply_and_pack(block, step, weights, wanted, h, x_t, x_stride)
        if len(d_x) > 0:
            is_first = d == 0 or t >= plan.steps[0]
            _add_input_gradients(block, pointer(d_x, (start, t, 0)), x_stride, is_first)


@inner
def _add_weight_gradients(skip, used, block, d_weights):
    """Add the products of operands and gates' gradients, summed over samples and steps.

    Args:
        skip: words at the beginning that are 0 in the hidden states' part.
        used: words that are filled.
        block: see `_Block`.
        d_weights: of one direction, see `backward`.
    """
    cells, depth, values = block.columns // GATES, block.depth, block.d_gates
    row, word = stacked_lhs_strides(values, cells + round_up(block.features, LANES), depth)
    panel_stride = PANEL * d_weights.shape[1]
    multiply(
        Lhs(pointer(block.lhs, skip * word), row, word),
        cells,
        used - skip,
        PackedRhs(block.rhs, skip, depth),
        None,
        Accumulators(pointer(d_weights, (0, 0, 0)), PANEL, panel_stride),
        block.columns,
    )
    multiply(
        Lhs(pointer(block.lhs, round_up(cells, tile_rows(values)) * row), row, word),
        round_up(block.features, tile_depth(values)),
        used,
        PackedRhs(block.rhs, 0, depth),
        None,
        Accumulators(pointer(d_weights, (0, cells, 0)), PANEL, panel_stride),
        block.columns,
    )
