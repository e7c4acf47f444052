"""The layer as a TensorFlow graph: a batch in parts, each an operation; the gradient. For `layer.py`."""

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from fastlstm.kernels import FROM_ZERO, KEEP, RETURNS, WITH_INPUT
from fastlstm.ops import operation
from fastlstm.recurrence import END, MEAN, SEQUENCE
from fastlstm.simd import LANES

_READOUTS = {"sequence": SEQUENCE, "mean": MEAN}
# Positions among the inputs of BilstmForward.
_META, _X, _PANELS, _PACKED_BIAS, _H0, _C0, _MASK, _PARAMETERS = range(8)
_thread = threading.local()


@contextmanager
def whole_batches() -> Iterator[None]:
    """Layers whose graph this thread builds meanwhile run a batch as one operation.

    For callers that keep every core busy with a batch of its own.
    """
    before, _thread.whole_batches = getattr(_thread, "whole_batches", False), True
    try:
        yield
    finally:
        _thread.whole_batches = before


def parts_of_a_batch() -> int:
    """The number of operations that a batch is cut into: as many as TensorFlow runs at the same time."""
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


def bilstm(parts, x, parameters, h0, c0, mask, readout, dtype, keep):
    """The recurrence in both directions or the forward one, and the readout.

    Args:
        parts: number of operations that the batch is cut into; each runs in one thread.
        x: `(batch, time, features)`.
        parameters: kernels `(features, 4 * units)`, recurrent kernels `(units, 4 * units)` and biases
            `(4 * units)` of Keras's layers, forward, backward of each, or forward alone.
        h0: initial hidden states `(2, batch, units)`, or None for zeros.
        c0: initial cell states, as h0.
        mask: None, or `(batch, time)`, 1 within a sample and 0 past its end.
        readout: see `BiLSTM`.
        dtype: of the matrix products' operands, `tf.float32` or `tf.bfloat16`.
        keep: whether to keep what the gradient needs. Prediction is faster without; a gradient then runs the
            forward pass again.

    Returns:
        `(batch, time, 2 * units)` for `"sequence"`, else `(batch, 2 * units)`, float32; half as wide for one
        direction.
    """
    one_direction = len(parameters) == 3
    if one_direction:
        # The backward direction takes no step, so it costs only memory.
        parameters = [parameter for parameter in parameters for _ in range(2)]
    time, units = x.shape[1], parameters[2].shape[0]
    # For "middle" the forward direction runs from the start to the middle, the backward one from the
    # end: for an even number of steps one step less.
    steps, backward_steps = (time // 2 + 1, time - time // 2) if readout == "middle" else (time, time)
    backward_steps = 0 if one_direction else backward_steps
    returns = SEQUENCE if mask is not None and readout == "mean" else _READOUTS.get(readout, END)
    # See `kernels.py`.
    meta = tf.constant([steps, backward_steps, returns, keep, h0 is None, units, True], tf.int32)
    packed = operation("BilstmPack", dtype, meta, *parameters)
    if h0 is not None:
        h0, c0 = _whole_groups(h0), _whole_groups(c0)
    batch = tf.shape(x)[0]
    ends = [batch * part // parts for part in range(parts + 1)]
    sizes = [end - start for start, end in itertools.pairwise(ends)]

    def cut(values, axis):
        # The gradient of a slice is as large as the whole, that of a split is not.
        return [values] * parts if values is None or parts == 1 else tf.split(values, sizes, axis)

    cuts = zip(cut(x, 0), cut(h0, 1), cut(c0, 1), cut(mask, 0), strict=True)
    outputs = [_part(meta, x_part, packed, parameters, *others, dtype) for x_part, *others in cuts]
    output = outputs[0] if parts == 1 else tf.concat(outputs, axis=0)
    if one_direction:
        output = output[..., :units]
    elif units % LANES:
        forward, backward = tf.split(output, 2, axis=-1)
        output = tf.concat([forward[..., :units], backward[..., :units]], axis=-1)
    output = _read(output, returns, readout, mask, time, units if one_direction else 2 * units)
    output.set_shape((x.shape[0], *output.shape[1:]))
    return output


# The operations are for graphs only.
bilstm_in_a_graph = tf.function(bilstm)


def _whole_groups(states):
    """Zero-pad the last axis to a multiple of LANES."""
    missing = -states.shape[-1] % LANES
    return tf.pad(states, ((0, 0), (0, 0), (0, missing))) if missing else states


def _part(meta, x, packed, parameters, h0, c0, mask, dtype):
    """What the operation returns for some samples: `(batch, time or 1, 2 * cells)`."""
    panels, _, packed_bias = packed
    cells = -(-parameters[2].shape[0] // LANES) * LANES
    if h0 is None:
        h0 = c0 = tf.zeros((0, 0, cells))
    if mask is None:
        mask = tf.zeros((0, x.shape[1]))
    y = operation("BilstmForward", dtype, meta, x, panels, packed_bias, h0, c0, mask, *parameters)[-1]
    is_sequence = tf.get_static_value(meta)[RETURNS] == SEQUENCE
    y.set_shape((x.shape[0], x.shape[1] if is_sequence else 1, 2 * cells))
    return y


def _read(output, returns, readout, mask, time, columns):
    """What is left to do of the readout in TensorFlow."""
    if readout == "sequence":
        return output
    if returns == SEQUENCE:
        return tf.reduce_sum(output, axis=1) / own_steps(mask)
    # Not a slice, whose gradient would be copied.
    output = tf.reshape(output, (-1, columns))
    return output * mask[:, time // 2, None] if mask is not None and readout == "middle" else output


@tf.RegisterGradient("BilstmForward")
def _gradient(op, *gradients):
    """The gradients of the operation's inputs, by BilstmBackward."""
    meta, x, panels, packed_bias, h0, c0, mask, *parameters = op.inputs
    numbers, dtype, d_y = list(tf.get_static_value(meta)), panels.dtype, gradients[-1]
    outputs = op.outputs
    if not numbers[KEEP]:
        numbers[KEEP] = True
        meta = tf.constant(numbers, tf.int32)
        outputs = operation("BilstmForward", dtype, meta, x, panels, packed_bias, h0, c0, mask, *parameters)
    gates, h_kept, c_kept, _ = outputs
    # The same operation as in the forward pass, so TensorFlow merges them.
    _, transposed, _ = operation("BilstmPack", dtype, meta, *parameters)
    # A gradient tape knows which gradients nobody asks for.
    numbers[WITH_INPUT] = _X not in (getattr(op, "skip_input_indices", None) or ())
    meta = tf.constant(numbers, tf.int32)
    *d_parameters, d_h0, d_c0, d_x = operation(
        "BilstmBackward", dtype, meta, x, transposed, gates, h_kept, c_kept, mask, d_y
    )
    found = {_X: d_x} if numbers[WITH_INPUT] else {}
    if not numbers[FROM_ZERO]:
        found |= {_H0: d_h0, _C0: d_c0}
    found |= dict(enumerate(d_parameters, _PARAMETERS))
    for number, value in found.items():
        value.set_shape(op.inputs[number].shape)
    return [found.get(number) for number in range(len(op.inputs))]
