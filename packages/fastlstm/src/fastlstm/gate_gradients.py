"""The elementwise part of the gradient, from the hidden states to the gates' arguments, for `backward.py`."""

from typing import NamedTuple

from fastlstm.activations import tanhs
from fastlstm.jit import inline
from fastlstm.matmul import PANEL, block_rows, in_panels, left_column
from fastlstm.recurrence import GATES, GROUP, ONE, ZERO
from fastlstm.simd import LANES, broadcast, pointer, prefetch, read, write, write_pair


class How(NamedTuple):
    """What a step does, and the distance from one sample to the next in its arrays."""

    number: int
    has_y: bool
    end: bool
    share: float
    d_y_row: int
    d_gates_row: int
    d_gates_half: int
    mask_row: int


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
def _hidden_gradient(group, how, n):
    d_h = read(group.d_h, n * PANEL)
    return d_h + read(group.d_y, n * how.d_y_row) * how.share if how.has_y else d_h


@inline
def _gate_gradient(group, how, n, tanh_c, d_h):
    """The gradients of the gates' arguments of a sample; those of the cell states go back by a step."""
    gate, cell, out = n * GROUP, n * LANES, n * how.d_gates_row
    i, f = read(group.gates, gate), read(group.gates, gate + LANES)
    g, o = read(group.gates, gate + 2 * LANES), read(group.gates, gate + 3 * LANES)
    d_c = read(group.d_c, cell) + d_h * o * (ONE - tanh_c * tanh_c)
    d_i = d_c * g * i * (ONE - i)
    d_f = d_c * read(group.c_old, cell) * f * (ONE - f)
    d_g = d_c * i * (ONE - g * g)
    d_o = d_h * tanh_c * o * (ONE - o)
    write(group.d_c, cell, d_c * f)
    write_pair(group.d_gates, out, d_i, d_f)
    write_pair(group.d_gates, out + how.d_gates_half, d_g, d_o)
    return d_i, d_f, d_g, d_o


@inline
def _gate_gradients(group, how, first, last):
    """`_gate_gradient` of some samples; the gradient of the bias is added to d_bias."""
    b_i, b_f = read(group.d_bias, 0), read(group.d_bias, LANES)
    b_g, b_o = read(group.d_bias, 2 * LANES), read(group.d_bias, 3 * LANES)
    fours = last - (last - first) % 4
    for n in range(first, fours, 4):
        cell = n * LANES
        t0, t1, t2, t3 = tanhs(
            read(group.c_new, cell),
            read(group.c_new, cell + LANES),
            read(group.c_new, cell + 2 * LANES),
            read(group.c_new, cell + 3 * LANES),
            group.gates,
        )
        # All are read before anything is written, which the compiler would not dare to reorder.
        h0, h1 = _hidden_gradient(group, how, n), _hidden_gradient(group, how, n + 1)
        h2, h3 = _hidden_gradient(group, how, n + 2), _hidden_gradient(group, how, n + 3)
        i0, f0, g0, o0 = _gate_gradient(group, how, n, t0, h0)
        i1, f1, g1, o1 = _gate_gradient(group, how, n + 1, t1, h1)
        i2, f2, g2, o2 = _gate_gradient(group, how, n + 2, t2, h2)
        i3, f3, g3, o3 = _gate_gradient(group, how, n + 3, t3, h3)
        b_i, b_f = b_i + i0 + i1 + (i2 + i3), b_f + f0 + f1 + (f2 + f3)
        b_g, b_o = b_g + g0 + g1 + (g2 + g3), b_o + o0 + o1 + (o2 + o3)
    for n in range(fours, last):
        c = read(group.c_new, n * LANES)
        t0, _, _, _ = tanhs(c, c, c, c, group.gates)
        i0, f0, g0, o0 = _gate_gradient(group, how, n, t0, _hidden_gradient(group, how, n))
        b_i, b_f, b_g, b_o = b_i + i0, b_f + f0, b_g + g0, b_o + o0
    write(group.d_bias, 0, b_i)
    write(group.d_bias, LANES, b_f)
    write(group.d_bias, 2 * LANES, b_g)
    write(group.d_bias, 3 * LANES, b_o)


@inline
def _masked_gate_gradients(group, how):
    """`_gate_gradients` of samples that may have ended: their d_h reaches earlier steps in d_past alone."""
    for n in range(how.number):
        past = read(group.d_past, n * LANES) + read(group.d_h, n * PANEL)
        if group.mask[n * how.mask_row] == 0:
            if how.has_y and how.end:
                past = past + read(group.d_y, n * how.d_y_row)
            write(group.d_past, n * LANES, past)
            for out in (n * how.d_gates_row, n * how.d_gates_row + how.d_gates_half):
                write_pair(group.d_gates, out, broadcast(ZERO), broadcast(ZERO))
        else:
            write(group.d_h, n * PANEL, past)
            write(group.d_past, n * LANES, broadcast(ZERO))
            _gate_gradients(group, how, n, n + 1)


@inline
def _prefetch(how, gates, c_old, d_y):
    for n in range(how.number):
        prefetch(gates, n * GROUP, GROUP)
        prefetch(c_old, n * LANES, LANES)
        if how.has_y:
            prefetch(d_y, n * how.d_y_row, LANES)


@inline
def gate_gradients_of_step(first, gates_before, c_before, d_y_before, how, cells, masked):
    """The gradients of all gates of a step.

    Args:
        first: pointers to the first group of cells; gates_before, c_before, d_y_before: to that of the step
            before, which comes next.
        masked: whether samples may have ended.
    """
    block = block_rows(first.gates)
    for k in range(0, cells, LANES):
        group = Group(
            pointer(first.gates, GATES * k * how.number),
            pointer(first.c_old, k * how.number),
            pointer(first.c_new, k * how.number),
            pointer(first.d_h, in_panels(k, block)),
            pointer(first.d_y, k),
            pointer(first.d_c, k * block),
            pointer(first.d_past, k * block),
            pointer(first.d_gates, left_column(first.d_gates, GATES * k)),
            pointer(first.d_bias, GATES * k),
            first.mask,
        )
        if k + LANES < cells:
            gates, c = pointer(group.gates, GROUP * how.number), pointer(group.c_old, LANES * how.number)
            _prefetch(how, gates, c, pointer(group.d_y, LANES))
        else:
            _prefetch(how, gates_before, c_before, d_y_before)
        if masked:
            _masked_gate_gradients(group, how)
        else:
            _gate_gradients(group, how, 0, how.number)
