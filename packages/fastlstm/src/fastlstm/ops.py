"""The layer's TensorFlow operations, registered through TensorFlow's C interface (tensorflow/c/ops.h).

`graph.py` strings them together. They have no shape inference: whoever calls `operation` sets shapes.
"""

import ctypes
import threading
from functools import cache

import tensorflow as tf
from tensorflow.python.eager import execute

from fastlstm.kernels import LIBRARY, compile_bodies

_PARAMETERS = [
    f"{name}_{direction}" for name in ("kernel", "recurrent", "bias") for direction in ("forward", "backward")
]
# Name: inputs, outputs. T is the type of the matrix products' operands; see `kernels.py` for `meta`.
OPERATIONS = {
    "BilstmPack": (
        ["meta: int32", *(f"{name}: float" for name in _PARAMETERS)],
        ["panels: T", "transposed: T", "bias: float"],
    ),
    # The parameters are those that were packed: here only for their gradients.
    "BilstmForward": (
        [
            "meta: int32",
            "x: float",
            "panels: T",
            "packed_bias: float",
            "h0: float",
            "c0: float",
            "mask: float",
            *(f"{name}: float" for name in _PARAMETERS),
        ],
        ["gates: T", "h_kept: T", "c_kept: T", "y: float"],
    ),
    "BilstmBackward": (
        [
            "meta: int32",
            "x: float",
            "transposed: T",
            "gates: T",
            "h_kept: T",
            "c_kept: T",
            "mask: float",
            "d_y: float",
        ],
        [*(f"d_{name}: float" for name in _PARAMETERS), "d_h0: float", "d_c0: float", "d_x: float"],
    ),
}


class _Library:
    """The part of TensorFlow's C interface that registers operations; its errors are RuntimeError."""

    def __init__(self):
        self.library = ctypes.CDLL(LIBRARY)
        self.status = ctypes.c_void_p(self("TF_NewStatus"))

    def __call__(self, name, *arguments):
        function = self.library[name]
        function.restype = ctypes.c_void_p
        return function(*arguments)

    def checked(self, name, *arguments):
        self(name, *arguments, self.status)
        if self.library.TF_GetCode(self.status):
            message = ctypes.c_char_p(self("TF_Message", self.status)).value.decode()
            raise RuntimeError(f"TensorFlow refused {name}: {message}")


@cache
def _register_operations():
    library = _Library()
    for name, (inputs, outputs) in OPERATIONS.items():
        builder = ctypes.c_void_p(library("TF_NewOpDefinitionBuilder", name.encode()))
        library("TF_OpDefinitionBuilderAddAttr", builder, b"T: {float, bfloat16}")
        for kind, listed in (("Input", inputs), ("Output", outputs)):
            for each in listed:
                library(f"TF_OpDefinitionBuilderAdd{kind}", builder, each.encode())
        library(
            "TF_OpDefinitionBuilderSetShapeInferenceFunction",
            builder,
            library.library.TF_ShapeInferenceContextSetUnknownShape,
        )
        library.checked("TF_RegisterOpDefinition", builder)
    return library


# Two threads may trace their first graphs at the same time.
_registration = threading.Lock()


@cache
def _register_kernels(dtype):
    library = _register_operations()
    for name, function in compile_bodies(dtype).items():
        builder = ctypes.c_void_p(
            library(
                "TF_NewKernelBuilder", name.encode(), b"CPU", None, ctypes.c_void_p(function.address), None
            )
        )
        library.checked("TF_KernelBuilder_TypeConstraint", builder, b"T", dtype.as_datatype_enum)
        library.checked("TF_RegisterKernelBuilder", f"{name}_{dtype.name}".encode(), builder)


def _refuse(op, *gradients):
    """The operations' own gradient, which only a second derivative of the layer needs.

    A persistent tape outside of any graph asks for it all the same, with zeros to pass on.
    """
    unused = [tf.reduce_all(tf.equal(value, 0)) for value in gradients if value is not None]
    message = "BiLSTM cannot be differentiated twice; what its to_keras() returns can"
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(unused), [message])]):
        return [None if value.dtype.is_integer else tf.zeros_like(value) for value in op.inputs]


for _name in ("BilstmPack", "BilstmBackward"):
    tf.RegisterGradient(_name)(_refuse)


def operation(name: str, dtype: tf.DType, *inputs: tf.Tensor) -> list[tf.Tensor]:
    """Add one of `OPERATIONS` to the graph that is being built.

    Args:
        name: of the operation.
        dtype: float32 or bfloat16, the type T.
        *inputs: as `OPERATIONS` lists them.

    Returns:
        Its outputs.
    """
    with _registration:
        _register_kernels(dtype)
    types = [dtype if output.endswith(": T") else tf.float32 for output in OPERATIONS[name][1]]
    attributes = {"T": tf.compat.v1.AttrValue(type=dtype.as_datatype_enum)}
    outputs = tf.compat.v1.get_default_graph().create_op(name, inputs, types, attrs=attributes).outputs
    # What TensorFlow's own operations do in their Python functions; gradient tapes would not know of it.
    if execute.must_record_gradient():
        execute.record_gradient(name, inputs, ("T", dtype.as_datatype_enum), outputs)
    return outputs
