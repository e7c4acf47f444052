"""Specification of the recurrence in NumPy, float64: one direction, forward and gradient."""

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm(x, kernel, recurrent, bias, mask):
    """Hidden states `(batch, time, units)` of x `(batch, time, features)`; 0 where mask `(batch, time)` is 0.

    Returns:
        The hidden states, and for each step what `lstm_gradient` needs.
    """
    h = c = np.zeros((len(x), len(recurrent)))
    steps = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c_new, own = f * c + i * g, mask[:, t, None] == 1
        steps.append((i, f, g, o, h, c, c_new))
        c = np.where(own, c_new, c)
        h = np.where(own, o * np.tanh(c), h)
    outputs = [o * np.tanh(c_new) for _, _, _, o, _, _, c_new in steps]
    return np.stack(outputs, axis=1) * mask[:, :, None], steps


def lstm_gradient(x, kernel, recurrent, mask, steps, d_y):
    """Gradients of x, kernel, recurrent and bias; d_y `(batch, time, units)` is that of the hidden states."""
    d_x, d_z = np.zeros(x.shape), np.zeros((*x.shape[:2], 4 * len(recurrent)))
    d_h = d_c = np.zeros((len(x), len(recurrent)))
    for t in reversed(range(x.shape[1])):
        i, f, g, o, h, c, c_new = steps[t]
        own, tanh_c = mask[:, t, None] == 1, np.tanh(c_new)
        d_out = d_h + d_y[:, t]
        d_cell = d_c + d_out * o * (1 - tanh_c**2)
        d_i, d_f = d_cell * g * i * (1 - i), d_cell * c * f * (1 - f)
        d_g, d_o = d_cell * i * (1 - g**2), d_out * tanh_c * o * (1 - o)
        d_z[:, t] = np.concatenate([d_i, d_f, d_g, d_o], axis=1) * own
        d_x[:, t] = d_z[:, t] @ kernel.T
        d_h = np.where(own, d_z[:, t] @ recurrent.T, d_h)
        d_c = np.where(own, d_cell * f, d_c)
    h = np.stack([step[4] for step in steps], axis=1)
    over_all = "btk,btz->kz"
    return d_x, np.einsum(over_all, x, d_z), np.einsum(over_all, h, d_z), d_z.sum((0, 1))
