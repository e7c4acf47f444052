"""The one entry to the compiled operations, for `layers.py`: it raises for what they cannot do."""

import sys

import keras
import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

from fastlstm.graph import bilstm, parts_of_a_batch

PRECISIONS = ("float32", "bfloat16")
_TANH = (keras.activations.tanh, keras.ops.tanh, tf.tanh)
_SIGMOID = (keras.activations.sigmoid, keras.ops.sigmoid, tf.sigmoid)
# Modules that trace a graph for programs without our operations, or that rewrite a graph's operations.
_FOREIGN_TRACERS = (
    "keras.src.export.",
    "tensorflow.lite.",
    "tensorflow.python.ops.parallel_for.",
    "tensorflow.python.saved_model.",
    "tf2onnx.",
)


def unsupported(lstm: keras.layers.LSTM) -> str | None:
    """Reason why the operations never compute this layer, or None."""
    if type(lstm.cell) is not keras.layers.LSTMCell:
        return f"its cell is {type(lstm.cell).__name__}, not LSTMCell"
    for name, supported in (("activation", _TANH), ("recurrent_activation", _SIGMOID)):
        function = getattr(lstm, name)
        if function not in supported:
            return f"{name} is {getattr(function, '__name__', function)}, not {supported[0].__name__}"
    for dtype in (lstm.compute_dtype, lstm.cell.compute_dtype, lstm.cell.variable_dtype):
        if dtype != "float32":
            return f"its dtype is {dtype}, not float32"
    return "it is stateful" if lstm.stateful else None


def unsupported_here() -> str | None:
    """Reason why this process or graph cannot use the operations, or None."""
    if keras.backend.backend() != "tensorflow":
        return f"the backend is {keras.backend.backend()}, not tensorflow"
    if any(device.device_type != "CPU" for device in tf.config.list_logical_devices()):
        return "there is a GPU or TPU"
    if tf.config.functions_run_eagerly():
        return "functions run eagerly"
    if not tf.executing_eagerly() and GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()):
        return "XLA compiles this function"
    frame = sys._getframe()
    while frame := frame.f_back:
        if frame.f_globals.get("__name__", "").startswith(_FOREIGN_TRACERS):
            return "the graph is traced for another program"
    return None


def run(lstms, inputs, mask, readout, precision, training):
    """The recurrence in one direction or both, by the compiled operations.

    Args:
        lstms: Keras's layers that have the weights, one, or forward and backward.
        inputs: `(batch, steps, features)`; one direction reads them from the first step on.
        mask: None, or `(batch, steps)`; steps where it is False change no state, and have an output of 0.
        readout: see `BiLSTM`; for one direction only `"sequence"` and `"last"`.
        precision: see `BiLSTM`.
        training: nothing is saved for the gradient where it is False.

    Returns:
        `(batch, steps, units)` for `"sequence"`, else `(batch, units)`; twice the units for both directions.

    Raises:
        NotImplementedError: gives the reason why Keras's own layer has to compute this.
    """
    for reason in filter(None, map(unsupported, lstms)):
        raise NotImplementedError(reason)
    inputs = tf.convert_to_tensor(inputs)
    steps, features = inputs.shape[1], lstms[0].cell.kernel.shape[0]
    if not steps or not features:
        raise NotImplementedError(f"the number of steps or features is unknown or 0: {inputs.shape}")
    if inputs.dtype != tf.float32:
        raise NotImplementedError(f"the input's dtype is {inputs.dtype.name}, not float32")
    # The compiled code relies on it, also where only the run knows the number of features.
    inputs = tf.ensure_shape(inputs, (None, steps, features))
    if mask is not None:
        if mask.shape.rank != 2:
            raise NotImplementedError(f"the mask has the shape {mask.shape}, not (batch, steps)")
        mask = tf.ensure_shape(tf.cast(mask, tf.float32), inputs.shape[:2])
    parameters = [
        tf.zeros(4 * lstm.units)
        if getattr(lstm.cell, name) is None
        else tf.convert_to_tensor(getattr(lstm.cell, name))
        for name in ("kernel", "recurrent_kernel", "bias")
        for lstm in lstms
    ]
    dtype, keep = tf.dtypes.as_dtype(precision), training is not False
    return bilstm(parts_of_a_batch(), inputs, parameters, mask, readout, dtype, keep)
