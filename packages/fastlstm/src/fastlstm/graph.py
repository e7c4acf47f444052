"""The recurrence as a differentiable TensorFlow function. The layers call `bilstm`."""

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from fastlstm.ops import OPERATIONS, operation, refuse
from fastlstm.recurrence import GATES, LAST, MEAN, SEQUENCE, Plan
from fastlstm.simd import LANES

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


class _Parts:
    """The operations on a batch that is divided into parts: of one recurrence, in the graph being built."""

    def __init__(self, plan, dtype, parts, x, parameters):
        self.plan, self.dtype, self.parts, self.parameters = plan, dtype, parts, parameters
        self.directions, self.units = len(parameters) // 3, parameters[-1].shape[0] // GATES
        time = x.shape[1] if plan.returns == SEQUENCE else 1
        self.x_shape = x.shape
        self.y_shape = x.shape[0], time, self.directions * -(-self.units // LANES) * LANES
        ends = [tf.shape(x)[0] * part // parts for part in range(parts + 1)]
        self.sizes = [end - start for start, end in itertools.pairwise(ends)]

    def _divide(self, values):
        return [values] * self.parts if self.parts == 1 else tf.split(values, self.sizes)

    def _join(self, values, shape):
        return tf.ensure_shape(values[0] if self.parts == 1 else tf.concat(values, axis=0), shape)

    def _run(self, name, save, *inputs, with_x=False):
        numbers = list(OPERATIONS).index(name), *self.plan.steps, self.plan.returns, save
        meta = tf.constant((*numbers, self.units, self.directions, with_x), tf.int32)
        return operation(name, self.dtype, meta, *inputs, parameters=3 * self.directions)

    def forward(self, save, x, mask):
        """y `(batch, time or 1, directions * cells)`, and what the backward pass of each part needs."""
        packed, transposed, bias = self._run("Pack", save, *self.parameters)
        masks = self._divide(mask) if mask.shape[0] != 0 else [mask] * self.parts
        inputs = list(zip(self._divide(x), masks, strict=True))
        y, *saved = zip(*(self._run("Forward", save, *part, packed, bias) for part in inputs), strict=True)
        return self._join(y, self.y_shape), [
            (*part, transposed, *others) for part, *others in zip(inputs, *saved, strict=True)
        ]

    def backward(self, with_x, d_y, saved):
        """Gradients of x, unless it is left out, and of the parameters."""
        parts = zip(self._divide(d_y), saved, strict=True)
        results = [self._run("Backward", True, part, *others, with_x=with_x) for part, others in parts]
        d_x, *d_parameters = zip(*results, strict=True)
        return self._join(d_x, self.x_shape if with_x else None), [
            tf.ensure_shape(tf.add_n(values), parameter.shape)
            for values, parameter in zip(d_parameters, self.parameters, strict=True)
        ]


def _recurrence(plan, with_x, dtype, parts, x, mask, parameters):
    """Outputs `(batch, time or 1, directions * cells)`, with their gradient."""

    @tf.custom_gradient
    def recurrence(x, mask, *parameters):
        operations = _Parts(plan, dtype, parts, x, parameters)
        y, saved = operations.forward(plan.save, x, mask)

        # A tape in a graph does not see the operations: without this, a second derivative would be lost.
        @tf.custom_gradient
        def gradient(d_y, x, mask, *parameters):
            inputs = saved if plan.save else operations.forward(True, x, mask)[1]
            d_x, d_parameters = operations.backward(with_x, d_y, inputs)
            if not with_x:
                d_x, _ = operations.backward(True, d_y, inputs)  # TensorFlow drops it if nobody asks for it
            values = d_y, x, mask, *parameters
            return [d_x, tf.zeros_like(mask), *d_parameters], lambda *given: refuse(given, values)

        return y, lambda d_y: gradient(d_y, x, mask, *parameters)

    return recurrence(x, mask, *parameters)


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
