"""The recurrence as a differentiable TensorFlow function. The layers call `bilstm`."""

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from fastlstm.ops import OPERATIONS, operation, refuse
from fastlstm.recurrence import END, GATES, MEAN, SEQUENCE, Plan
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


def own_steps(mask: tf.Tensor) -> tf.Tensor:
    """Number of true steps of each sample, at least 1: mask `(batch, steps)` -> `(batch, 1)`."""
    return tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)


def bilstm(parts, x, parameters, mask, readout, dtype, keep):
    """The recurrence in both directions or the forward one, and the readout.

    Args:
        parts: number of operations that the batch is divided among; each runs in one thread.
        x: float32 `(batch, time, features)`; time is known.
        parameters: kernels `(features, 4 * units)`, recurrent kernels `(units, 4 * units)` and biases
            `(4 * units)` of Keras's layers, one of each for each direction.
        mask: None, or float32 `(batch, time)`, 1 within a sample and 0 past its end.
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
    returns = SEQUENCE if mask is not None and readout == "mean" else _READOUTS.get(readout, END)
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
        return tf.reduce_sum(output, axis=1) / own_steps(mask)
    # Not a slice, whose gradient would be copied.
    output = tf.ensure_shape(tf.reshape(output, (-1, directions * units)), (x.shape[0], None))
    return output * mask[:, time // 2, None] if mask_or_none is not None and readout == "middle" else output


def _recurrence(plan, with_x, dtype, parts, x, mask, parameters):
    """Outputs `(batch, time or 1, directions * cells)` of the operations, with their gradient."""
    directions, units = len(parameters) // 3, parameters[-1].shape[0] // GATES
    time = x.shape[1] if plan.returns == SEQUENCE else 1
    shape = x.shape[0], time, directions * -(-units // LANES) * LANES
    batch = tf.shape(x)[0]
    ends = [batch * part // parts for part in range(parts + 1)]
    sizes = [end - start for start, end in itertools.pairwise(ends)]

    def divide(values):
        return [values] * parts if parts == 1 else tf.split(values, sizes)

    def join(values):
        return values[0] if parts == 1 else tf.concat(values, axis=0)

    def run(name, save, *inputs, with_x=False):
        numbers = list(OPERATIONS).index(name), *plan.steps, plan.returns, save, units, directions, with_x
        return operation(name, dtype, tf.constant(numbers, tf.int32), *inputs, parameters=3 * directions)

    def forward(save, x, mask, *parameters):
        """y, and what the backward pass of each part needs."""
        packed, transposed, bias = run("Pack", save, *parameters)
        masks = divide(mask) if mask.shape[0] != 0 else [mask] * parts
        inputs = list(zip(divide(x), masks, strict=True))
        y, *saved = zip(*(run("Forward", save, *values, packed, bias) for values in inputs), strict=True)
        return tf.ensure_shape(join(y), shape), [
            (*values, transposed, *others) for values, *others in zip(inputs, *saved, strict=True)
        ]

    def backward(with_x, d_y, saved):
        """Gradients of x and of the parameters."""
        inputs = zip(divide(d_y), saved, strict=True)
        results = [run("Backward", True, part, *others, with_x=with_x) for part, others in inputs]
        d_x, *d_parameters = zip(*results, strict=True)
        d_parameters = [
            tf.ensure_shape(tf.add_n(values), parameter.shape)
            for values, parameter in zip(d_parameters, parameters, strict=True)
        ]
        return tf.ensure_shape(join(d_x), x.shape if with_x else None), d_parameters

    @tf.custom_gradient
    def recurrence(x, mask, *parameters):
        y, saved = forward(plan.save, x, mask, *parameters)

        # A tape in a graph does not see the operations: without this, a second derivative would be lost.
        @tf.custom_gradient
        def gradient(d_y, x, mask, *parameters):
            inputs = saved if plan.save else forward(True, x, mask, *parameters)[1]
            d_x, d_parameters = backward(with_x, d_y, inputs)
            if not with_x:
                d_x, _ = backward(True, d_y, inputs)  # TensorFlow drops it if nobody asks for it
            values = d_y, x, mask, *parameters
            return [d_x, tf.zeros_like(mask), *d_parameters], lambda *given: refuse(given, values)

        return y, lambda d_y: gradient(d_y, x, mask, *parameters)

    return recurrence(x, mask, *parameters)


# The operations are for graphs only.
_in_a_graph = tf.function(_recurrence)


def _depends_on_variables(x):
    """Whether the graph that computes a tensor reads a variable."""
    seen, operations = set(), [x.op]
    while operations:
        operation = operations.pop()
        if operation.type == "ReadVariableOp":
            return True
        operations += {tensor.op for tensor in operation.inputs} - seen
        seen |= set(operations)
    return False
