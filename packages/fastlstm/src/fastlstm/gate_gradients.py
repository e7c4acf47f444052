"""The elementwise part of the gradient, from the hidden states to the gates. For `backward.py`."""

from typing import NamedTuple

from fastlstm.activations import tanh
from fastlstm.jit import inline
from fastlstm.matmul import block_rows, state_column
from fastlstm.recurrence import GATES, ONE, ZERO
from fastlstm.simd import (
    LANES,
    SAMPLES,
    TILE,
    WIDE,
    add_rows,
    load,
    load_rows,
    load_wide,
    pointer,
    prefetch,
    splat,
    store,
    store_rows,
)


class Step(NamedTuple):
    """Settings of a step of a block of samples, and pointers to the first group of cells of the first sample.

    Attributes:
        number, rows: samples in the block, and rounded up to a multiple of SAMPLES.
        has_y: whether y depends on the hidden states of this step.
        end: whether y is the hidden state after the last step.
        share: factor of d_y, 1 with a mask.
        y_stride, mask_stride: of samples; a mask_stride of 0 means that there is no mask.
        saved_stride: of steps in c_old.
        gates, c_old, c_new: saved.
        d_h: of the hidden states, and then of the inputs if wanted, float32 `(groups, block, LANES)`.
        d_c, d_past: float32 `(cells / LANES, block, LANES)`: of the cell states; of the last hidden states of
            masked samples.
        d_gates: gradients of the pre-activations, values `(block, 4 * cells)` in the layout of states.
        others: of the arrays of these names.
    """

    number: int
    rows: int
    has_y: bool
    end: bool
    share: float
    y_stride: int
    mask_stride: int
    saved_stride: int
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
def _add_masked_gradients(step, k):
    """Add d_y to d_h. Of masked samples, d_h reaches earlier steps through d_past."""
    for n in range(step.number):
        cell, masked = k * block_rows(step.gates) + n * LANES, step.mask[n * step.mask_stride] == 0
        d_h = load(step.d_past, cell) + load(step.d_h, cell)
        if step.has_y and (step.end or not masked):
            d_h = d_h + load(step.d_y, n * step.y_stride + k)
        store(step.d_past, cell, d_h if masked else splat(ZERO))
        store(step.d_h, cell, splat(ZERO) if masked else d_h)


@inline
def _gate_gradients(step, k):
    """Gradients of the pre-activations, and of the bias, which are added to d_bias; d_c goes back a step."""
    scratch, saved, size = k * block_rows(step.gates), k * step.rows, step.rows * LANES
    gates, d_bias = pointer(step.gates, GATES * saved), pointer(step.d_bias, GATES * k)
    left = pointer(step.d_gates, state_column(step.d_gates, GATES * k))
    right = pointer(step.d_gates, state_column(step.d_gates, GATES * k + TILE))
    b_i, b_f = load(d_bias, 0), load(d_bias, LANES)
    b_g, b_o = load(d_bias, 2 * LANES), load(d_bias, 3 * LANES)
    for n in range(0, size, WIDE):
        i, f = load_wide(gates, n), load_wide(gates, size + n)
        g, o = load_wide(gates, 2 * size + n), load_wide(gates, 3 * size + n)
        d_h, tanh_c = load_wide(step.d_h, scratch + n), tanh(load_wide(step.c_new, saved + n), step.gates)
        if step.has_y and step.mask_stride == 0:
            sample = n // LANES
            d_y = load_rows(step.d_y, sample * step.y_stride + k, step.y_stride, step.number - sample)
            d_h = d_h + d_y * step.share
        d_c = load_wide(step.d_c, scratch + n) + d_h * o * (ONE - tanh_c * tanh_c)
        d_i = d_c * g * i * (ONE - i)
        d_f = d_c * load_wide(step.c_old, saved + n) * f * (ONE - f)
        d_g = d_c * i * (ONE - g * g)
        d_o = d_h * tanh_c * o * (ONE - o)
        store(step.d_c, scratch + n, d_c * f)
        store_rows(left, n // LANES * TILE, TILE, (d_i, d_f), SAMPLES)
        store_rows(right, n // LANES * TILE, TILE, (d_g, d_o), SAMPLES)
        b_i, b_f = add_rows(b_i, d_i), add_rows(b_f, d_f)
        b_g, b_o = add_rows(b_g, d_g), add_rows(b_o, d_o)
    store(d_bias, 0, b_i)
    store(d_bias, LANES, b_f)
    store(d_bias, 2 * LANES, b_g)
    store(d_bias, 3 * LANES, b_o)


@inline
def _prefetch(step, k, place):
    """Prefetch what a group of cells reads, which is saved at a place."""
    for n in range(step.number):
        prefetch(step.gates, GATES * (place + n * LANES), GATES * LANES)
        prefetch(step.c_old, place + n * LANES, LANES)
        if step.has_y:
            prefetch(step.d_y, n * step.y_stride + k, LANES)


@inline
def step_gradients(step, cells):
    """Gradients of the gates of all cells."""
    for k in range(0, cells, LANES):
        following = k + LANES
        # After the last group comes the first one of the step before.
        _prefetch(step, following, following * step.rows if following < cells else -step.saved_stride)
        if step.mask_stride > 0:
            _add_masked_gradients(step, k)
        _gate_gradients(step, k)
