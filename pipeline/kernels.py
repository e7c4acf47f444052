"""The two functions of `lstm_step.py`, and a matrix product, as TensorFlow operations. Used by `bilstm.py`.

They are registered through TensorFlow's C interface (tensorflow/c/ops.h and kernels.h) and compiled by
Numba. So a step waits neither for Python nor for XLA, whose calling sequence takes some 50
microseconds, as long as the step's own work; and no compiler needs to be installed.
"""

import ctypes
from functools import cache
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import tensorflow as tf
from numba.core import types
from numba.extending import intrinsic

from pipeline.lstm_step import GATES, SEQUENCE, backward_step, compiled, forward_step, kept

# Name, inputs, outputs. An output `..._next` goes on in the memory of the input of that name.
OPERATIONS = {
    "BilstmForward": (
        "meta: int32, gates: T, z: T, bias: float, h: T, c: float, mask: float, y: float, before: T, "
        "states: float",
        "h_next: T, gates_next: T, y_next: float, before_next: T, states_next: float"),
    "BilstmBackward": (
        "meta: int32, gates: T, states: float, mask: float, d_y: float, d_h: T, d_c: float, "
        "passed: float, d_bias: float",
        "d_z: T, gates_next: T, d_c_next: float, passed_next: float, d_bias_next: float"),
    "BilstmProduct": ("meta: int32, a: T, b: T", "product: T"),
}

_LIBRARY = str(next(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.*")))
llvmlite.binding.load_library_permanently(_LIBRARY)
_address, _int, _long = types.uintp, types.int32, types.int64


def _external(name, result, *arguments):
    return types.ExternalFunction(name, result(*arguments))


_get_input = _external("TF_GetInput", types.void, _address, _int, _address, _address)
_data = _external("TF_TensorData", _address, _address)
_dim = _external("TF_Dim", _long, _address, _int)
_delete_tensor = _external("TF_DeleteTensor", types.void, _address)
_allocate_output = _external("TF_AllocateOutput", _address,
                             _address, _int, _int, _address, _int, _address, _address)
_forward_input_or_allocate_output = _external(
    "TF_ForwardInputOrAllocateOutput", _address,
    _address, _address, _int, _int, _address, _int, _address, _address)
_new_status = _external("TF_NewStatus", _address)
_code = _external("TF_GetCode", _int, _address)
_delete_status = _external("TF_DeleteStatus", types.void, _address)
_fail = _external("TF_OpKernelContext_Failure", types.void, _address, _address)


@intrinsic
def _pointer(typing_context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))
    return types.voidptr(address), generate


@compiled
def _array(tensor, shape, element):
    return numba.carray(_pointer(_data(tensor)), shape, element)


@compiled
def _shape(tensor):
    return _dim(tensor, 0), _dim(tensor, 1), _dim(tensor, 2)


@compiled
def _take(op, number, status):
    """An input's tensor, to be deleted."""
    slot = np.zeros(1, np.uintp)
    _get_input(op, number, slot.ctypes.data, status)
    return slot[0]


@compiled
def _allocate(op, number, enum, itemsize, shape, status):
    """An output's tensor, to be deleted; 0 if there is no memory."""
    dims = np.array(shape, np.int64)
    return _allocate_output(op, number, enum, dims.ctypes.data, len(dims), dims.prod() * itemsize, status)


@compiled
def _keep(op, source, number, itemsize, shape, status):
    """The tensor of an output that goes on from an input, or from zeros if that is empty.

    It is in the input's memory, unless somebody else still needs that; 0 if there is no memory.
    """
    dims = np.array(shape, np.int64)
    candidate, forwarded = np.array([source], np.int32), np.zeros(1, np.int32)
    tensor = _forward_input_or_allocate_output(op, candidate.ctypes.data, 1, number, dims.ctypes.data,
                                               len(dims), forwarded.ctypes.data, status)
    if forwarded[0] < 0 and tensor:
        size = dims.prod() * itemsize
        to = _array(tensor, size, np.uint8)
        before = _take(op, source, status)
        if _dim(before, 0) == 0:
            to[:] = 0
        else:
            to[:] = _array(before, size, np.uint8)
        _delete_tensor(before)
    return tensor


@compiled
def _forward(op, element, enum, itemsize):
    status = _new_status()
    meta, z, bias = _take(op, 0, status), _take(op, 2, status), _take(op, 3, status)
    h_before, c_initial, mask = _take(op, 4, status), _take(op, 5, status), _take(op, 6, status)
    step, steps, _, returns, keep = _array(meta, (5,), np.int32)
    _, batch, units = _shape(c_initial)
    h_shape, gates_shape = (2, batch, units), (2, batch, steps, GATES * units)
    mask_shape, before_shape = (_dim(mask, 0), _dim(mask, 1)), (2, batch, steps if keep else 0, units)
    y_shape = (batch, mask_shape[1] if returns == SEQUENCE else 1, 2 * units)
    states_shape = (steps + 1 if keep else 1, 2, batch, units)
    h = _allocate(op, 0, enum, itemsize, h_shape, status)
    gates = _keep(op, 1, 1, itemsize, gates_shape, status)
    y = _keep(op, 7, 2, 4, y_shape, status)
    before = _keep(op, 8, 3, itemsize, before_shape, status)
    states = _keep(op, 9, 4, 4, states_shape, status)
    if _code(status):
        _fail(op, status)
    else:
        h_array, c = _array(h, h_shape, element), _array(states, states_shape, np.float32)
        h_array[:] = _array(h_before, h_shape, element)
        if step == 0:
            c[0] = _array(c_initial, h_shape, np.float32)
        before_step, after_step = (step, step + 1) if keep else (0, 0)
        forward_step(step, returns, keep, _array(gates, gates_shape, element), _array(z, _shape(z), element),
                     _array(bias, (2, GATES * units), np.float32), c[before_step], c[after_step], h_array,
                     _array(before, before_shape, element), _array(mask, mask_shape, np.float32),
                     _array(y, y_shape, np.float32))
    for tensor in (meta, z, bias, h_before, c_initial, mask, h, gates, y, before, states):
        _delete_tensor(tensor)
    _delete_status(status)


@compiled
def _backward(op, element, enum, itemsize):
    status = _new_status()
    meta, states, mask = _take(op, 0, status), _take(op, 2, status), _take(op, 3, status)
    d_y, d_h = _take(op, 4, status), _take(op, 5, status)
    step, steps, backward_steps, returns, _ = _array(meta, (5,), np.int32)
    batch, units = _dim(states, 2), _dim(states, 3)
    directions = 2 if step < backward_steps else 1
    states_shape, gates_shape = (steps + 1, 2, batch, units), (2, batch, steps, GATES * units)
    mask_shape, d_z_shape = (_dim(mask, 0), _dim(mask, 1)), (directions, batch, GATES * units)
    d_c_shape, passed_shape, d_bias_shape = (2, batch, units), (2, mask_shape[0], units), (2, GATES * units)
    d_z = _allocate(op, 0, enum, itemsize, d_z_shape, status)
    gates = _keep(op, 1, 1, itemsize, gates_shape, status)
    d_c = _keep(op, 6, 2, 4, d_c_shape, status)
    passed = _keep(op, 7, 3, 4, passed_shape, status)
    d_bias = _keep(op, 8, 4, 4, d_bias_shape, status)
    if _code(status):
        _fail(op, status)
    else:
        gates_array, c = _array(gates, gates_shape, element), _array(states, states_shape, np.float32)
        if directions == 1:
            # The backward direction has no such step: it has no part in the weights' gradients.
            gates_array[1, :, steps - 1 - step] = 0
        backward_step(step, (step == steps - 1, step == backward_steps - 1), returns, gates_array,
                      c[step], c[step + 1], _array(mask, mask_shape, np.float32),
                      _array(d_y, _shape(d_y), np.float32), _array(d_h, _shape(d_h), element),
                      _array(d_c, d_c_shape, np.float32), _array(passed, passed_shape, np.float32),
                      _array(d_bias, d_bias_shape, np.float32), _array(d_z, d_z_shape, element))
    for tensor in (meta, states, mask, d_y, d_h, d_z, gates, d_c, passed, d_bias):
        _delete_tensor(tensor)
    _delete_status(status)


@compiled
def _product(op, enum):
    status = _new_status()
    meta, a, b = _take(op, 0, status), _take(op, 1, status), _take(op, 2, status)
    transpose_a, transpose_b = _array(meta, (2,), np.int32)
    lefts, rights = _array(a, _shape(a), np.float32), _array(b, _shape(b), np.float32)
    shape = (len(rights), lefts.shape[2 if transpose_a else 1], rights.shape[1 if transpose_b else 2])
    product = _allocate(op, 0, enum, 4, shape, status)
    if _code(status):
        _fail(op, status)
    else:
        out = _array(product, shape, np.float32)
        for n in range(len(rights)):
            left, right = lefts[n if len(lefts) > 1 else 0], rights[n]
            if transpose_a:
                np.dot(left.T, right, out[n])
            elif transpose_b:
                np.dot(left, right.T, out[n])
            else:
                np.dot(left, right, out[n])
    for tensor in (meta, a, b, product):
        _delete_tensor(tensor)
    _delete_status(status)


_FLOAT32, _BFLOAT16 = tf.float32.as_datatype_enum, tf.bfloat16.as_datatype_enum


# TensorFlow calls them with the state of the kernel, of which there is none, and the operation's context.


def _forward_float32(_, op):
    _forward(op, np.float32, _FLOAT32, 4)


def _forward_bfloat16(_, op):
    _forward(op, np.uint16, _BFLOAT16, 2)


def _backward_float32(_, op):
    _backward(op, np.float32, _FLOAT32, 4)


def _backward_bfloat16(_, op):
    _backward(op, np.uint16, _BFLOAT16, 2)


def _product_float32(_, op):
    _product(op, _FLOAT32)


_KERNELS = {
    tf.float32: {"BilstmForward": _forward_float32, "BilstmBackward": _backward_float32,
                 "BilstmProduct": _product_float32},
    tf.bfloat16: {"BilstmForward": _forward_bfloat16, "BilstmBackward": _backward_bfloat16},
}
_kernel = kept(numba.cfunc(types.void(_address, _address), cache=True))


@cache
def _compile(dtype):
    """The kernels for one type T; TensorFlow calls them as long as the process lives."""
    return {name: _kernel(function) for name, function in _KERNELS[dtype].items()}


class _Library:
    """The part of TensorFlow's C interface that registers operations; its errors are RuntimeError."""

    def __init__(self):
        self.library = ctypes.CDLL(_LIBRARY)
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
            for each in listed.split(", "):
                library(f"TF_OpDefinitionBuilderAdd{kind}", builder, each.encode())
        library("TF_OpDefinitionBuilderSetShapeInferenceFunction", builder,
                library.library.TF_ShapeInferenceContextSetUnknownShape)
        library.checked("TF_RegisterOpDefinition", builder)
    return library


@cache
def _register_kernels(dtype):
    library = _register_operations()
    for name, function in _compile(dtype).items():
        builder = ctypes.c_void_p(library("TF_NewKernelBuilder", name.encode(), b"CPU", None,
                                          ctypes.c_void_p(function.address), None))
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


for _name in OPERATIONS:
    tf.RegisterGradient(_name)(_refuse)


def operation(name, dtype, *inputs):
    """The outputs of one of `OPERATIONS` in the graph that is being built; T is float32 or bfloat16."""
    _register_kernels(dtype)
    outputs = [dtype if output.endswith(": T") else tf.float32
               for output in OPERATIONS[name][1].split(", ")]
    return tf.compat.v1.get_default_graph().create_op(
        name, inputs, outputs,
        attrs={"T": tf.compat.v1.AttrValue(type=dtype.as_datatype_enum)}).outputs


def product(a, b, transpose_a=False, transpose_b=False):
    """Matrix products of n pairs, or of one a and n b: `(n, rows, columns)` of type float32 or bfloat16.

    In float32 they are those of SciPy's BLAS: TensorFlow's take up to half as long again for operands as
    small as a step's. In bfloat16 there are only TensorFlow's.
    """
    if a.dtype == tf.float32:
        return operation("BilstmProduct", a.dtype, tf.constant([transpose_a, transpose_b], tf.int32), a, b)[0]
    return tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
