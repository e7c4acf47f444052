"""The recurrence as a differentiable TensorFlow function. The layers call `bilstm`."""

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from fastlstm.ops import OPERATIONS, operation, refuse
from fastlstm.recurrence import GATES, LAST, MEAN, SEQUENCE, Plan
from fastlstm.simd import LANES, TILE

_READOUTS = {"sequence": SEQUENCE, "mean": MEAN}
_thread = threading.local()


@contextmanager
def whole_batches() -> Iterator[None]:
    """Layers whose graph is built inside this context run a batch as one operation.

    For callers that keep every core busy with a batch of its own.
    """
    before, _thread.whole_batches = getattr(_thread, "whole_batches", False), True
    try:
        yield
    finally:
        _thread.whole_batches = before


def parts_of_a_batch() -> int:
    """Number of operations for a batch: as many as TensorFlow runs at the same time."""
    if getattr(_thread, "whole_batches", False):
        return 1
    setting = os.environ.get("TF_NUM_INTEROP_THREADS", "")
    return (
        tf.config.threading.get_inter_op_parallelism_threads()
        or (int(setting) if setting.isdecimal() else 0)
        or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    )


def bilstm(parts, x, parameters, mask, readout, dtype, keep):
    """The recurrence in both directions or the forward one, and the readout.

    Args:
        parts: number of operations that the batch is divided among; each runs in one thread.
        x: float32 `(batch, time, features)`; time is known.
        parameters: kernels `(features, 4 * units)`, recurrent kernels `(units, 4 * units)` and biases
            `(4 * units)` of Keras's layers, one of each for each direction.
        mask: None, or float32 `(batch, time)`, 0 for masked steps and else 1.
        readout: see `BiLSTM`.
        dtype: of the matrix products' operands, `tf.float32` or `tf.bfloat16`.
        keep: whether to save what the gradient needs. Prediction is faster without; a gradient then runs the
            forward pass again.

    Returns:
        `(batch, time, directions * units)` for `"sequence"`, else `(batch, directions * units)`, float32.
    """
    time, units, directions = x.shape[1], parameters[-1].shape[0] // GATES, len(parameters) // 3
    # For "middle" the forward direction runs from the start to the middle, the backward one from the
    # end: for an even number of steps one step less.
    steps = (time // 2 + 1, time - time // 2) if readout == "middle" else (time, time)
    steps = steps if directions == 2 else (time, 0)
    returns = SEQUENCE if mask is not None and readout == "mean" else _READOUTS.get(readout, LAST)
    mask_or_none, mask = mask, tf.zeros((0, time)) if mask is None else mask
    # The first layer's inputs depend on no variable, and nobody asks for their gradient.
    with_x = tf.executing_eagerly() or _depends_on_variables(x)
    run = _in_a_graph if tf.executing_eagerly() else _recurrence
    output = run(Plan(steps, returns, bool(keep)), with_x, dtype, parts, x, mask, parameters)
    cells = output.shape[2] // directions
    if units < cells:
        output = tf.concat([part[..., :units] for part in tf.split(output, directions, axis=-1)], axis=-1)
    if readout == "sequence":
        return output
    if returns == SEQUENCE:
        return tf.reduce_sum(output, axis=1) / tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)
    # Not a slice, whose gradient would be copied.
    output = tf.ensure_shape(tf.reshape(output, (-1, directions * units)), (x.shape[0], None))
    return output * mask[:, time // 2, None] if mask_or_none is not None and readout == "middle" else output


def _round_up(number, multiple):
    return -(-number // multiple) * multiple


def _interleaved(values, units):
    """Columns in the order of the recurrence: `(rows, 4 * units)` of Keras to `(rows, 4 * cells)`.

    Keras puts a gate's columns of all cells together; the recurrence has a group's four gates side by side,
    and zero-pads the last group.
    """
    cells = _round_up(units, LANES)
    gates = tf.pad(tf.reshape(values, (-1, GATES, units)), ((0, 0), (0, 0), (0, cells - units)))
    groups = tf.transpose(tf.reshape(gates, (-1, GATES, cells // LANES, LANES)), (0, 2, 1, 3))
    return tf.reshape(groups, (-1, GATES * cells))


def _weights_and_bias(parameters, units, features):
    """Parameters in the order of the recurrence: states above inputs, each zero-padded to whole groups.

    Returns:
        Weights `(directions, cells + padded features, 4 * cells)`, bias `(directions, 4 * cells)`.
    """
    directions = len(parameters) // 3
    kernels, recurrents, biases = (parameters[i * directions :][:directions] for i in range(3))

    def padded(values, rows):
        return tf.pad(_interleaved(values, units), ((0, _round_up(rows, LANES) - rows), (0, 0)))

    pairs = zip(recurrents, kernels, strict=True)
    weights = [tf.concat([padded(u, units), padded(w, features)], axis=0) for u, w in pairs]
    return tf.stack(weights), tf.concat([_interleaved(bias, units) for bias in biases], axis=0)


def _packed(weights, dtype):
    """Right operands, see `matmul.py`: `(directions, depth, columns)` to `(directions, depth * columns)`."""
    directions, depth, columns = weights.shape
    in_word = 2 if dtype == tf.bfloat16 else 1
    words = tf.reshape(tf.cast(weights, dtype), (directions, -1, in_word, columns // LANES, LANES))
    return tf.reshape(tf.transpose(words, (0, 3, 1, 4, 2)), (directions, depth * columns))


class _Parts:
    """The operations on a batch that is divided into parts: of one recurrence, in the graph being built."""

    def __init__(self, plan, dtype, parts, x, weights):
        self.plan, self.dtype, self.parts, self.weights = plan, dtype, parts, weights
        directions, _, columns = weights.shape
        self.y_shape = (x.shape[0], x.shape[1] if plan.returns == SEQUENCE else 1, directions * columns // GATES)
        self.x_shape = x.shape
        ends = [tf.shape(x)[0] * part // parts for part in range(parts + 1)]
        self.sizes = [end - start for start, end in itertools.pairwise(ends)]

    def _divide(self, values):
        return [values] * self.parts if self.parts == 1 else tf.split(values, self.sizes)

    def _join(self, values, shape):
        return tf.ensure_shape(values[0] if self.parts == 1 else tf.concat(values, axis=0), shape)

    def _run(self, name, save, *inputs, with_x=False):
        numbers = list(OPERATIONS).index(name), *self.plan.steps, self.plan.returns, save, with_x
        return operation(name, self.dtype, tf.constant(numbers, tf.int32), *inputs)

    def forward(self, save, x, mask, bias):
        """y `(batch, time or 1, directions * cells)`, and what the backward pass of each part needs."""
        depth = self.weights.shape[1]
        padding = (0, 0), (0, _round_up(depth, TILE) - depth), (0, 0)
        packed = _packed(tf.pad(self.weights, padding), self.dtype)
        masks = self._divide(mask) if mask.shape[0] != 0 else [mask] * self.parts
        inputs = list(zip(self._divide(x), masks, strict=True))
        y, *saved = zip(*(self._run("Forward", save, *part, packed, bias) for part in inputs), strict=True)
        return self._join(y, self.y_shape), list(zip(inputs, zip(*saved, strict=True), strict=True))

    def backward(self, with_x, d_y, saved):
        """Gradients of x, unless it is left out, of the weights and of the bias."""
        transposed = _packed(tf.transpose(self.weights, (0, 2, 1)), self.dtype)
        d_x, d_weights, d_bias = zip(
            *(
                self._run("Backward", True, part, *inputs, transposed, *activations, with_x=with_x)
                for part, (inputs, activations) in zip(self._divide(d_y), saved, strict=True)
            ),
            strict=True,
        )
        d_weights = tf.reshape(tf.transpose(tf.add_n(d_weights), (0, 2, 1, 3)), self.weights.shape)
        return self._join(d_x, self.x_shape if with_x else None), d_weights, tf.add_n(d_bias)


def _recurrence(plan, with_x, dtype, parts, x, mask, parameters):
    """Outputs `(batch, time or 1, directions * cells)`, with their gradient."""

    @tf.custom_gradient
    def recurrence(x, mask, weights, bias):
        operations = _Parts(plan, dtype, parts, x, weights)
        y, saved = operations.forward(plan.save, x, mask, bias)

        # A tape in a graph does not see the operations: without this, a second derivative would be lost.
        @tf.custom_gradient
        def gradient(d_y, x, mask, weights, bias):
            inputs = saved if plan.save else operations.forward(True, x, mask, bias)[1]
            d_x, *d_others = operations.backward(with_x, d_y, inputs)
            if not with_x:
                d_x, *_ = operations.backward(True, d_y, inputs)  # TensorFlow drops it if nobody asks for it
            values = d_y, x, mask, weights, bias
            return [d_x, tf.zeros_like(mask), *d_others], lambda *given: refuse(given, values)

        return y, lambda d_y: gradient(d_y, x, mask, weights, bias)

    units, features = parameters[-1].shape[0] // GATES, x.shape[2]
    return recurrence(x, mask, *_weights_and_bias(parameters, units, features))


# The operations are for graphs only.
_in_a_graph = tf.function(_recurrence)

# Operations that may read a variable.
_READERS = {
    "PartitionedCall",
    "ReadVariableOp",
    "ResourceGather",
    "StatefulPartitionedCall",
    "StatelessWhile",
    "While",
}


def _depends_on_variables(x):
    """Whether the graph that computes a tensor reads a variable, also in a loop or in another function."""
    seen, found = set(), [x.op]
    while found:
        op = found.pop()
        takes_variable = any(tensor.dtype == tf.resource for tensor in op.inputs)
        if takes_variable and op.type in _READERS:
            return True
        found += {tensor.op for tensor in op.inputs} - seen
        seen |= set(found)
    return False
