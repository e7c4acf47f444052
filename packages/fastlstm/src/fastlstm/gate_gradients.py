"""The elementwise part of the gradient, from the hidden states to the gates' arguments. For `backward.py`."""

from typing import NamedTuple

from fastlstm.activations import tanh
from fastlstm.jit import inline
from fastlstm.matmul import TILE, block_rows, state_column
from fastlstm.recurrence import GATES, ONE, ZERO
from fastlstm.simd import LANES, WIDE, add_rows, load, load_wide, pointer, prefetch, splat, store, store_rows


class StepConfig(NamedTuple):
    """Settings of a step, and the strides of samples in y and mask.

    Attributes:
        number, rows: samples in the block, and rounded up to a multiple of FOUR.
        has_y: whether y depends on the hidden states of this step.
        end: whether y is the hidden state after the last step.
        masked: whether samples may have ended.
        share: factor of d_y.
    """

    number: int
    rows: int
    has_y: bool
    end: bool
    masked: bool
    share: float
    d_y_stride: int
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


@inline
def _add_output_gradients(group, config):
    """Add d_y to d_h. Of samples that have ended, d_h reaches earlier steps through d_past."""
    for n in range(config.number):
        cell, ended = n * LANES, config.masked and group.mask[n * config.mask_stride] == 0
        d_h = load(group.d_h, cell)
        if config.masked:
            d_h = d_h + load(group.d_past, cell)
        if config.has_y and (config.end or not ended):
            d_h = d_h + load(group.d_y, n * config.d_y_stride) * config.share
        if config.masked:
            store(group.d_past, cell, d_h if ended else splat(ZERO))
        store(group.d_h, cell, splat(ZERO) if ended else d_h)


@inline
def _gate_gradients(group, config):
    """Gradients of the gates' arguments, and of the bias, which are added to d_bias; d_c goes back a step."""
    gate, pair = config.rows * LANES, state_column(group.d_gates, 2 * LANES)
    b_i, b_f = load(group.d_bias, 0), load(group.d_bias, LANES)
    b_g, b_o = load(group.d_bias, 2 * LANES), load(group.d_bias, 3 * LANES)
    for n in range(0, gate, WIDE):
        i, f = load_wide(group.gates, n), load_wide(group.gates, gate + n)
        g, o = load_wide(group.gates, 2 * gate + n), load_wide(group.gates, 3 * gate + n)
        d_h, tanh_c = load_wide(group.d_h, n), tanh(load_wide(group.c_new, n), group.gates)
        d_c = load_wide(group.d_c, n) + d_h * o * (ONE - tanh_c * tanh_c)
        d_i = d_c * g * i * (ONE - i)
        d_f = d_c * load_wide(group.c_old, n) * f * (ONE - f)
        d_g = d_c * i * (ONE - g * g)
        d_o = d_h * tanh_c * o * (ONE - o)
        store(group.d_c, n, d_c * f)
        row = n // LANES * TILE
        store_rows(group.d_gates, row, TILE, (d_i, d_f))
        store_rows(group.d_gates, pair + row, TILE, (d_g, d_o))
        b_i, b_f, b_g, b_o = (add_rows(b_i, d_i), add_rows(b_f, d_f), add_rows(b_g, d_g), add_rows(b_o, d_o))
    store(group.d_bias, 0, b_i)
    store(group.d_bias, LANES, b_f)
    store(group.d_bias, 2 * LANES, b_g)
    store(group.d_bias, 3 * LANES, b_o)


@inline
def _prefetch(config, gates, c_old, d_y):
    for n in range(config.number):
        prefetch(gates, GATES * n * LANES, GATES * LANES)
        prefetch(c_old, n * LANES, LANES)
        if config.has_y:
            prefetch(d_y, n * config.d_y_stride, LANES)


@inline
def step_gradients(first, gates_before, c_before, d_y_before, config, cells):
    """Gradients of all gates of a step.

    Args:
        first: pointers to the first group of cells.
        gates_before, c_before, d_y_before: pointers to that of the step before, which comes next.
        config: see `StepConfig`.
        cells: number of cells.
    """
    block, rows = block_rows(first.gates), config.rows
    for k in range(0, cells, LANES):
        group = Group(
            pointer(first.gates, GATES * k * rows),
            pointer(first.c_old, k * rows),
            pointer(first.c_new, k * rows),
            pointer(first.d_h, k * block),
            pointer(first.d_y, k),
            pointer(first.d_c, k * block),
            pointer(first.d_past, k * block),
            pointer(first.d_gates, state_column(first.d_gates, GATES * k)),
            pointer(first.d_bias, GATES * k),
            first.mask,
        )
        if k + LANES < cells:
            gates, c = (pointer(group.gates, GATES * LANES * rows), pointer(group.c_old, LANES * rows))
            _prefetch(config, gates, c, pointer(group.d_y, LANES))
        else:
            _prefetch(config, gates_before, c_before, d_y_before)
        if config.has_y or config.masked:
            _add_output_gradients(group, config)
        _gate_gradients(group, config)
