"""The one entry to the compiled operations, for `layers.py`: `run` raises for what they cannot do."""

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import tensorflow as tf
from tensorflow.python.eager.record import could_possibly_record

from fastlstm.dispatch import unsupported
from fastlstm.ops import operation, refuse
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


def run(lstms, inputs, mask, readout, precision, training):
    """The recurrence in one direction or both, by the compiled operations.

    Args:
        lstms: Keras's layers that have the weights, one, or forward and backward.
        inputs: `(batch, steps, features)`; one direction reads them from the first step on.
        mask: None, or `(batch, steps)`; steps where it is False change no state, and have an output of 0.
        readout: see `BiLSTM`; for one direction only `"sequence"` and `"last"`.
        precision: see `BiLSTM`.
        training: where it is False and no tape records, nothing is saved for the gradient.

    Returns:
        `(batch, steps, units)` for `"sequence"`, else `(batch, units)`; twice the units for both directions.

    Raises:
        NotImplementedError: gives the reason why Keras's own layer has to compute this.
    """
    x, mask = _checked(lstms, inputs, mask)
    time, directions, units = x.shape[1], len(lstms), lstms[0].units
    # For "middle" the forward direction runs from the start to the middle, the backward one from the
    # end: for an even number of steps one step less.
    steps = (time // 2 + 1, time - time // 2) if readout == "middle" else (time, time)
    returns = SEQUENCE if mask is not None and readout == "mean" else _READOUTS.get(readout, LAST)
    # Keras's LSTM passes `training=False` on where the caller passes nothing, also in training loops.
    save = training is not False or could_possibly_record()
    plan = Plan(steps if directions == 2 else (time, 0), returns, save)
    # The first layer's inputs depend on no variable, and nobody asks for their gradient.
    with_x = tf.executing_eagerly() or _depends_on_variables(x)
    recurrence = _eager_recurrence if tf.executing_eagerly() else _recurrence
    values = [getattr(lstm.cell, name) for name in ("kernel", "recurrent_kernel", "bias") for lstm in lstms]
    parameters = [tf.zeros(GATES * units) if v is None else tf.convert_to_tensor(v) for v in values]
    output = recurrence(plan, with_x, tf.as_dtype(precision), parts_of_a_batch(), x, mask, parameters)
    cells = output.shape[2] // directions
    if units < cells:
        output = tf.concat([part[..., :units] for part in tf.split(output, directions, axis=-1)], axis=-1)
    if readout == "sequence":
        return output
    if returns == SEQUENCE:
        return tf.reduce_sum(output, axis=1) / tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)
    # Not a slice, whose gradient would be copied.
    output = tf.ensure_shape(tf.reshape(output, (-1, directions * units)), (x.shape[0], None))
    return output * mask[:, time // 2, None] if mask is not None and readout == "middle" else output


def _checked(lstms, inputs, mask):
    """Inputs and mask as the operations take them, float32 both; raises as `run`."""
    for reason in filter(None, map(unsupported, lstms)):
        raise NotImplementedError(reason)
    x = tf.convert_to_tensor(inputs)
    time, features = x.shape[1], lstms[0].cell.kernel.shape[0]
    if not time or not features:
        raise NotImplementedError(f"the number of steps or features is unknown or 0: {x.shape}")
    if x.dtype.is_integer:
        x = tf.cast(x, tf.float32)
    if x.dtype != tf.float32:
        raise NotImplementedError(f"the input's dtype is {x.dtype.name}, not float32")
    # The compiled code relies on it, also where only the run knows the number of features.
    x = tf.ensure_shape(x, (None, time, features))
    if mask is not None:
        if mask.shape.rank != 2:
            raise NotImplementedError(f"the mask has the shape {mask.shape}, not (batch, steps)")
        mask = tf.ensure_shape(tf.cast(mask, tf.float32), x.shape[:2])
    return x, mask


def _recurrence(plan, with_x, dtype, parts, x, mask, parameters):
    """The operations on a batch that is divided into parts: outputs `(batch, time or 1, directions * cells)`.

    Args:
        plan: see `Plan`. Where it saves nothing, a gradient runs the forward pass again.
        with_x: whether the gradient of x is probably wanted.
        dtype: of the matrix products' operands, `tf.float32` or `tf.bfloat16`.
        parts: number of operations; each runs in one thread.
        x, mask: `(batch, time, features)`, and None or `(batch, time)`, 0 for masked steps and else 1.
        parameters: kernels, recurrent kernels and biases, of each direction.
    """
    directions, units = len(parameters) // 3, parameters[-1].shape[0] // GATES
    add = partial(operation, dtype=dtype, directions=directions, units=units)
    recurrence = _differentiable(add, plan, with_x, add("Pack", plan, *parameters))
    ends = [tf.shape(x)[0] * part // parts for part in range(parts + 1)]
    sizes = [end - start for start, end in itertools.pairwise(ends)]

    def divide(values):
        return tf.split(values, sizes) if parts > 1 else [values]

    masks = [tf.zeros((0, x.shape[1]))] * parts if mask is None else divide(mask)
    outputs = [recurrence(*pair, *parameters) for pair in zip(divide(x), masks, strict=True)]
    time, cells = x.shape[1] if plan.returns == SEQUENCE else 1, -(-units // LANES) * LANES
    return tf.ensure_shape(tf.concat(outputs, axis=0), (x.shape[0], time, directions * cells))


def _differentiable(add, plan, with_x, weights):
    """A function of x, mask and parameters: the operation on a part of a batch, with its gradient.

    `add` adds an operation to the graph; the weights are the outputs of `Pack`.
    """
    packed, transposed, bias = weights

    @tf.custom_gradient
    def recurrence(x, mask, *parameters):
        y, *saved = add("Forward", plan, x, mask, packed, bias)

        # A tape in a graph does not see the operations: without this, a second derivative would be lost.
        @tf.custom_gradient
        def gradient(d_y, x, mask, *parameters):
            training = plan._replace(save=True)
            kept, back = saved, transposed
            if not plan.save:
                kept = add("Forward", training, x, mask, packed, bias)[1:]
                back = add("Pack", training, *parameters)[1]
            inputs = d_y, x, mask, back, *kept
            d_x, *d_parameters = add("Backward", training, *inputs, with_x=with_x)
            if not with_x:  # TensorFlow drops this one if nobody asks for it
                d_x, *_ = add("Backward", training, *inputs, with_x=True)
            gradients = d_x, tf.zeros_like(mask), *d_parameters
            # Copies in this graph: that of a second derivative cannot reach the forward graph's tensors.
            values = [tf.identity(value) for value in (d_y, x, mask, *parameters)]
            shapes = [value.shape for value in values[1:]]
            return list(map(tf.ensure_shape, gradients, shapes)), lambda *given: refuse(given, values)

        # Some operations, such as tf.gather, have gradients that are no tensors.
        return y, lambda d_y: gradient(tf.convert_to_tensor(d_y), x, mask, *parameters)

    return recurrence


# The operations are for graphs only.
_in_a_graph = tf.function(_recurrence)


def _eager_recurrence(plan, with_x, dtype, parts, x, mask, parameters):
    """`_recurrence`, by one graph for every size of a batch."""
    shapes = [value if value is None else tf.TensorSpec((None, *value.shape[1:])) for value in (x, mask)]
    graph = _in_a_graph.get_concrete_function(plan, with_x, dtype, parts, *shapes, parameters)
    return graph(plan, with_x, dtype, parts, x, mask, parameters)


def _depends_on_variables(x):
    """Whether the graph that computes a tensor reads a variable, also in a loop or in another function."""
    seen, found = set(), [x.op]
    while found:
        op = found.pop()
        takes_resource = any(tensor.dtype == tf.resource for tensor in op.inputs)
        if takes_resource and "Iterator" not in op.type:  # those of a dataset are no variables
            return True
        found += {tensor.op for tensor in op.inputs} - seen
        seen |= set(found)
    return False
