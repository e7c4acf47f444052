"""The recurrence of a bidirectional LSTM and its gradient: definitions of `forward.py` and `backward.py`.

A block of samples takes all its steps before the next block begins, so that it stays in the caches. The
equations are those of Keras's LSTM (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000),
the gradient is their chain rule:

    z = x @ kernel + bias + h_prev @ recurrent
    i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o);  g = tanh(z_g)
    c = f * c_prev + i * g;  h = o * tanh(c)

`kernels.py` and `ops.py` make TensorFlow operations of these functions.

Names: `d` is the direction, 0 forward and 1 backward, except in `d_...`, the loss's derivative with respect
to the variable `...`. `t` is the position in the input, `step` the number in the order of computation. `k` is
the first cell of a group, `n` a sample of the block that starts at sample `start`. Values for the gradient
are saved in the order of computation, because sequential access is fastest: of a block, the first group of
cells of every sample, then the second group; of the gates, for each group all i, then all f, g and o. The
batch is rounded up to a multiple of SAMPLES there, because four samples are computed together.
"""

from typing import NamedTuple

import numpy as np

from fastlstm.jit import inline

# Keras's LSTM orders its gates: input, forget, candidate, output. Here the cells of a layer are taken in
# groups of LANES, and the four gates of a group are adjacent, so one matrix product yields all four.
# The last group is zero-padded.
GATES = 4
# The output of a layer: all hidden states h, their mean, or the last one of each direction.
SEQUENCE, MEAN, LAST = range(3)
ZERO, ONE = np.float32(0), np.float32(1)


class Plan(NamedTuple):
    """Settings of a computation.

    Attributes:
        steps: of the forward and of the backward direction; the latter takes as many, one less, or none.
        returns: `SEQUENCE`, `MEAN` (without a mask) or `LAST`: what y is of the hidden states.
        save: whether the forward pass saves what the gradient needs.
    """

    steps: tuple
    returns: int
    save: bool


class SavedActivations(NamedTuple):
    """Input of the backward pass: float32, or bfloat16 as uint16; empty if nothing is saved.

    Attributes:
        gates: `(directions, steps + 1, batch, 4 * cells)`: of each step; the last is not written.
        h, c: `(directions, steps + 1, batch, cells)`: before each step, and after the last.
    """

    gates: np.ndarray
    h: np.ndarray
    c: np.ndarray


@inline
def time_of(d, step, time):
    """Position of a direction's step in the input."""
    return step if d == 0 else time - 1 - step


@inline
def saved_at(d, step, start, shape):
    """Offset of a block's values in saved states of some shape: of a step, or before it."""
    _, steps, batch, cells = shape
    return ((d * steps + step) * batch + start) * cells
