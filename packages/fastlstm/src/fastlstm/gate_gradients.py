"""The elementwise part of the gradient, from the hidden states to the gates' arguments. For `backward.py`."""

from typing import NamedTuple

from fastlstm.activations import tanh
from fastlstm.jit import inline, literal_inline
from fastlstm.matmul import PANEL, block_rows, lhs_column, panel_column
from fastlstm.recurrence import GATES, GROUP, ONE, ZERO
from fastlstm.simd import (
    LANES,
    add_rows,
    join,
    load,
    load_rows,
    pointer,
    prefetch,
    splat,
    store,
    store_row_pairs,
)


class StepConfig(NamedTuple):
    """Settings of a step, and the strides of samples in its arrays.

    Attributes:
        number: samples in the block.
        has_y: whether y depends on the hidden states of this step.
        end: whether y is the hidden state after the last step.
        share: factor of d_y.
        d_gates_half: distance of the candidate gate's gradient from the input gate's.
    """

    number: int
    has_y: bool
    end: bool
    share: float
    d_y_stride: int
    d_gates_stride: int
    d_gates_half: int
    mask_stride: int


class Group(NamedTuple):
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


@literal_inline
def _row_gradients(group, config, n, rows):
    """Gradients of the gates' arguments for 1 or 4 samples; d_c goes back by a step."""
    gate, cell = n * GROUP, n * LANES
    d_h = load_rows(group.d_h, n * PANEL, PANEL, rows)
    if config.has_y:
        d_h = d_h + load_rows(group.d_y, n * config.d_y_stride, config.d_y_stride, rows) * config.share
    tanh_c = tanh(load_rows(group.c_new, cell, LANES, rows), group.gates)
    i = load_rows(group.gates, gate, GROUP, rows)
    f = load_rows(group.gates, gate + LANES, GROUP, rows)
    g = load_rows(group.gates, gate + 2 * LANES, GROUP, rows)
    o = load_rows(group.gates, gate + 3 * LANES, GROUP, rows)
    d_c = load_rows(group.d_c, cell, LANES, rows) + d_h * o * (ONE - tanh_c * tanh_c)
    d_i = d_c * g * i * (ONE - i)
    d_f = d_c * load_rows(group.c_old, cell, LANES, rows) * f * (ONE - f)
    d_g = d_c * i * (ONE - g * g)
    d_o = d_h * tanh_c * o * (ONE - o)
    store(group.d_c, cell, d_c * f)
    out, stride = n * config.d_gates_stride, config.d_gates_stride
    store_row_pairs(group.d_gates, out, stride, d_i, d_f)
    store_row_pairs(group.d_gates, out + config.d_gates_half, stride, d_g, d_o)
    return d_i, d_f, d_g, d_o


@inline
def _gate_gradients(group, config, first, last):
    """`_row_gradients` of some samples, and the gradient of the bias, which is added to d_bias."""
    b_i, b_f = load(group.d_bias, 0), load(group.d_bias, LANES)
    b_g, b_o = load(group.d_bias, 2 * LANES), load(group.d_bias, 3 * LANES)
    fours = last - (last - first) % 4
    for n in range(first, fours, 4):
        i, f, g, o = _row_gradients(group, config, n, 4)
        b_i, b_f, b_g, b_o = (add_rows(b_i, i), add_rows(b_f, f), add_rows(b_g, g), add_rows(b_o, o))
    for n in range(fours, last):
        i, f, g, o = _row_gradients(group, config, n, 1)
        b_i, b_f, b_g, b_o = (add_rows(b_i, i), add_rows(b_f, f), add_rows(b_g, g), add_rows(b_o, o))
    store(group.d_bias, 0, join(b_i, b_f, b_g, b_o))


@inline
def _masked_gate_gradients(group, config):
    """`_gate_gradients` of samples that may have ended: d_h reaches earlier steps only through d_past."""
    for n in range(config.number):
        past = load(group.d_past, n * LANES) + load(group.d_h, n * PANEL)
        if group.mask[n * config.mask_stride] == 0:
            if config.has_y and config.end:
                past = past + load(group.d_y, n * config.d_y_stride)
            store(group.d_past, n * LANES, past)
            zeros, stride = splat(ZERO), config.d_gates_stride
            store_row_pairs(group.d_gates, n * stride, stride, zeros, zeros)
            store_row_pairs(group.d_gates, n * stride + config.d_gates_half, stride, zeros, zeros)
        else:
            store(group.d_h, n * PANEL, past)
            store(group.d_past, n * LANES, splat(ZERO))
            _gate_gradients(group, config, n, n + 1)


@inline
def _prefetch(config, gates, c_old, d_y):
    for n in range(config.number):
        prefetch(gates, n * GROUP, GROUP)
        prefetch(c_old, n * LANES, LANES)
        if config.has_y:
            prefetch(d_y, n * config.d_y_stride, LANES)


@inline
def step_gradients(first, gates_before, c_before, d_y_before, config, cells, masked):
    """Gradients of all gates of a step.

    Args:
        first: pointers to the first group of cells.
        gates_before, c_before, d_y_before: pointers to that of the step before, which comes next.
        config: see `StepConfig`.
        cells: number of cells.
        masked: whether samples may have ended.
    """
    block, number = block_rows(first.gates), config.number
    for k in range(0, cells, LANES):
        group = Group(
            pointer(first.gates, GATES * k * number),
            pointer(first.c_old, k * number),
            pointer(first.c_new, k * number),
            pointer(first.d_h, panel_column(k, block)),
            pointer(first.d_y, k),
            pointer(first.d_c, k * block),
            pointer(first.d_past, k * block),
            pointer(first.d_gates, lhs_column(first.d_gates, GATES * k)),
            pointer(first.d_bias, GATES * k),
            first.mask,
        )
        if k + LANES < cells:
            gates, c = (pointer(group.gates, GROUP * number), pointer(group.c_old, LANES * number))
            _prefetch(config, gates, c, pointer(group.d_y, LANES))
        else:
            _prefetch(config, gates_before, c_before, d_y_before)
        if masked:
            _masked_gate_gradients(group, config)
        else:
            _gate_gradients(group, config, 0, number)
