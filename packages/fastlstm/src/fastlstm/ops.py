"""The package's TensorFlow operations, registered through TensorFlow's C API (tensorflow/c/ops.h).

They have no shape inference and no gradient of their own: `graph.py` takes care of both.
"""

import ctypes
import threading
from functools import cache

import tensorflow as tf

from fastlstm.kernels import LIBRARY, compile_body
from fastlstm.recurrence import Plan

# Name: inputs, outputs; in the order of `kernels.py`. T is the type of the matrix products' operands.
_SAVED = ["gates: T", "h: T", "c: T"]
OPERATIONS = {
    "Pack": (["meta: int32", "parameters: N * float"], ["packed: T", "transposed: T", "bias: float"]),
    "Forward": (
        ["meta: int32", "x: float", "mask: float", "packed: T", "bias: float"],
        ["y: float", *_SAVED],
    ),
    "Backward": (
        ["meta: int32", "d_y: float", "x: float", "mask: float", "transposed: T", *_SAVED],
        ["d_x: float", "d_parameters: N * float"],
    ),
}
_lock = threading.Lock()


class _Handle(ctypes.c_void_p):
    """A pointer that ctypes does not convert to an int."""


def _check(library, function, *arguments):
    """Call a function of TensorFlow's C API; an error is a RuntimeError."""
    status = library.TF_NewStatus()
    function(*arguments, status)
    if library.TF_GetCode(status):
        raise RuntimeError(f"TensorFlow refused {function.__name__}: {library.TF_Message(status).decode()}")
    library.TF_DeleteStatus(status)


def refuse(gradients, inputs):
    """Return zero gradients; fail in the run if an upstream gradient is not zero.

    A persistent tape always asks for second derivatives, with upstream gradients of zero.
    """
    unused = [tf.reduce_all(tf.equal(value, 0)) for value in gradients if value is not None]
    message = "fastlstm cannot be differentiated twice; what its to_keras() returns can"
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(unused), [message])]):
        return [None if value.dtype.is_integer else tf.zeros_like(value) for value in inputs]


@cache
def _register(dtype):
    """Register the operations for one type of operands, and compile them."""
    library, compute = ctypes.CDLL(LIBRARY), ctypes.c_void_p(compile_body(dtype).address)
    for function in (library.TF_NewStatus, library.TF_NewOpDefinitionBuilder, library.TF_NewKernelBuilder):
        function.restype = _Handle
    library.TF_Message.restype = ctypes.c_char_p
    adders = library.TF_OpDefinitionBuilderAddInput, library.TF_OpDefinitionBuilderAddOutput
    shapes = library.TF_ShapeInferenceContextSetUnknownShape
    for name, lists in OPERATIONS.items():
        full_name = f"Fastlstm{name}_{dtype.name}"
        builder = library.TF_NewOpDefinitionBuilder(full_name.encode())
        library.TF_OpDefinitionBuilderAddAttr(builder, b"N: int >= 0")
        for add, values in zip(adders, lists, strict=True):
            for value in values:
                add(builder, value.replace(": T", f": {dtype.name}").encode())
        library.TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, shapes)
        _check(library, library.TF_RegisterOpDefinition, builder)
        kernel = library.TF_NewKernelBuilder(full_name.encode(), b"CPU", None, compute, None)
        _check(library, library.TF_RegisterKernelBuilder, full_name.encode(), kernel)
        tf.RegisterGradient(full_name)(lambda op, *gradients: refuse(gradients, op.inputs))


def operation(
    name: str, plan: Plan, *inputs: tf.Tensor, dtype: tf.DType, directions: int, units: int, with_x=False
) -> list[tf.Tensor]:
    """Add one of `OPERATIONS` to the graph that is being built.

    Args:
        name: of the operation.
        plan: see `Plan`.
        *inputs: as `OPERATIONS` lists them, without `meta`.
        dtype: float32 or bfloat16, the type T.
        directions, units: of the layer; N, the number of parameters, is 3 of each direction.
        with_x: whether a backward pass computes the gradient of x.

    Returns:
        Its outputs.
    """
    with _lock:
        _register(dtype)
    numbers = list(OPERATIONS).index(name), *plan.steps, plan.returns, plan.save, units, directions, with_x
    types, parameters = [], 3 * directions
    for output in OPERATIONS[name][1]:
        types += [dtype if output.endswith(": T") else tf.float32] * (parameters if "N *" in output else 1)
    attributes = {"N": tf.compat.v1.AttrValue(i=parameters)}
    graph, meta = tf.compat.v1.get_default_graph(), tf.constant(numbers, tf.int32)
    return graph.create_op(f"Fastlstm{name}_{dtype.name}", (meta, *inputs), types, attrs=attributes).outputs
