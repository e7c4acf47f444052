"""Reasons why Keras's own layer has to compute something instead of the compiled operations."""

import sys

import keras
import tensorflow as tf
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

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


def unsupported_backend() -> str | None:
    """Reason why Keras's backend cannot use the operations, or None."""
    backend = keras.backend.backend()
    return None if backend == "tensorflow" else f"the backend is {backend}, not tensorflow"


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
    if reason := unsupported_backend():
        return reason
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
