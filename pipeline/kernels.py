"""The functions of `lstm_step.py` and `products.py` as TensorFlow operations. Used by `bilstm.py`.

They are registered through TensorFlow's C interface (tensorflow/c/ops.h and kernels.h) and compiled by
Numba. So a step waits neither for Python nor for XLA, whose calling sequence takes some 50
microseconds, as long as the step's own work; and no compiler needs to be installed.
"""

import ctypes
import os
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import tensorflow as tf
from numba.core import types
from numba.extending import intrinsic

from pipeline.compiled import compiled, kept
from pipeline.lstm_step import (
    GATES, MEAN, SEQUENCE, backward, forward, group, input_gradients, ungroup)
from pipeline.products import multiplies_bfloat16, pack, pack_transposed, padded, units_of

_PARAMETERS = ", ".join(f"{name}_{direction}: float" for name in ("kernel", "recurrent", "bias")
                        for direction in ("forward", "backward"))
# Name: inputs, outputs. An output `..._next` goes on in the memory of the input of that name.
OPERATIONS = {
    "BilstmGroup": (_PARAMETERS, "weights: T, bias: float"),
    "BilstmUngroup": ("meta: int32, d_weights: float, d_bias: float", _PARAMETERS),
    "BilstmPack": ("meta: int32, weights: T", "panels: T"),
    "BilstmForward": (
        "meta: int32, x: T, weights: T, gates: T, z: T, bias: float, h: T, c: float, mask: float, y: float, "
        "before: T, states: float",
        "h_next: T, gates_next: T, y_next: float, before_next: T, states_next: float"),
    "BilstmBackward": (
        "meta: int32, x: T, weights: T, gates: T, states: float, before: T, mask: float, d_y: float, d_h: T, "
        "d_c: float, passed: float, d_bias: float",
        "d_z: T, gates_next: T, d_c_next: float, passed_next: float, d_bias_next: float, d_weights: float"),
    "BilstmInputGradient": ("meta: int32, weights: T, d_gates: T", "d_x: float"),
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
    """An output's tensor, to be deleted; 0 if there is no memory, for it or for one before it."""
    # The next call would forget of it.
    if _code(status):
        return np.uintp(0)
    dims = np.array(shape, np.int64)
    tensor = _allocate_output(op, number, enum, dims.ctypes.data, len(dims), dims.prod() * itemsize, status)
    # Used once more, so that Numba does not free it before the call.
    return tensor if len(dims) > 0 else np.uintp(0)


@compiled
def _keep(op, source, number, itemsize, shape, clear, status):
    """The tensor of an output that goes on from an input; where that is empty, from zeros if `clear`.

    It is in the input's memory, unless somebody else still needs that; 0 if there is no memory, as in
    `_allocate`.
    """
    if _code(status):
        return np.uintp(0)
    # Compared below with what TensorFlow took: so Numba does not free it before the call.
    dims = np.array(shape, np.int64)
    candidate, forwarded = np.array([source], np.int32), np.zeros(1, np.int32)
    tensor = _forward_input_or_allocate_output(op, candidate.ctypes.data, 1, number, dims.ctypes.data,
                                               len(dims), forwarded.ctypes.data, status)
    if forwarded[0] != candidate[0] and tensor:
        size = dims.prod() * itemsize
        to = _array(tensor, size, np.uint8)
        before = _take(op, source, status)
        if _dim(before, 0) > 0:
            to[:] = _array(before, size, np.uint8)
        elif clear:
            to[:] = 0
        _delete_tensor(before)
    return tensor


@compiled
def _group(op, element, enum, itemsize):
    status = _new_status()
    kernel, kernel_back = _take(op, 0, status), _take(op, 1, status)
    recurrent, recurrent_back = _take(op, 2, status), _take(op, 3, status)
    bias, bias_back = _take(op, 4, status), _take(op, 5, status)
    features, units, columns = _dim(kernel, 0), _dim(recurrent, 0), _dim(bias, 0)
    cells = padded(units)
    weights_shape, bias_shape = (2, cells + features, GATES * cells), (2, GATES * cells)
    weights = _allocate(op, 0, enum, itemsize, weights_shape, status)
    biases = _allocate(op, 1, _FLOAT32, 4, bias_shape, status)
    if _code(status):
        _fail(op, status)
    else:
        weights_array = _array(weights, weights_shape, element)
        biases_array = _array(biases, bias_shape, np.float32)
        group(_array(kernel, (features, columns), np.float32),
              _array(recurrent, (units, columns), np.float32),
              _array(bias, (1, columns), np.float32), weights_array[0], biases_array[:1])
        group(_array(kernel_back, (features, columns), np.float32),
              _array(recurrent_back, (units, columns), np.float32),
              _array(bias_back, (1, columns), np.float32), weights_array[1], biases_array[1:])
    for tensor in (kernel, kernel_back, recurrent, recurrent_back, bias, bias_back, weights, biases):
        _delete_tensor(tensor)
    _delete_status(status)


@compiled
def _ungroup(op):
    status = _new_status()
    meta, d_weights, d_bias = _take(op, 0, status), _take(op, 1, status), _take(op, 2, status)
    units = np.int64(_array(meta, (1,), np.int32)[0])
    weights_shape, columns = _shape(d_weights), GATES * units
    features = weights_shape[1] - padded(units)
    kernel = _allocate(op, 0, _FLOAT32, 4, (features, columns), status)
    kernel_back = _allocate(op, 1, _FLOAT32, 4, (features, columns), status)
    recurrent = _allocate(op, 2, _FLOAT32, 4, (units, columns), status)
    recurrent_back = _allocate(op, 3, _FLOAT32, 4, (units, columns), status)
    bias, bias_back = (_allocate(op, 4, _FLOAT32, 4, (columns,), status),
                       _allocate(op, 5, _FLOAT32, 4, (columns,), status))
    if _code(status):
        _fail(op, status)
    else:
        weights_array = _array(d_weights, weights_shape, np.float32)
        bias_array = _array(d_bias, (2, weights_shape[2]), np.float32)
        ungroup(weights_array[0], bias_array[:1], _array(kernel, (features, columns), np.float32),
                _array(recurrent, (units, columns), np.float32), _array(bias, (1, columns), np.float32))
        ungroup(weights_array[1], bias_array[1:], _array(kernel_back, (features, columns), np.float32),
                _array(recurrent_back, (units, columns), np.float32),
                _array(bias_back, (1, columns), np.float32))
    for tensor in (meta, d_weights, d_bias, kernel, kernel_back, recurrent, recurrent_back, bias, bias_back):
        _delete_tensor(tensor)
    _delete_status(status)


@compiled
def _pack(op, element, enum, itemsize):
    status = _new_status()
    meta, weights = _take(op, 0, status), _take(op, 1, status)
    transposed, = _array(meta, (1,), np.int32)
    shape = _shape(weights)
    depth, columns = (shape[2], shape[1]) if transposed else (shape[1], shape[2])
    # An odd depth of bfloat16 is filled up to whole pairs.
    panels_shape = (shape[0], padded(columns) * (depth + depth % 2 if itemsize == 2 else depth))
    panels = _allocate(op, 0, enum, itemsize, panels_shape, status)
    if _code(status):
        _fail(op, status)
    else:
        from_array = _array(weights, shape, element)
        to_array = units_of(_array(panels, panels_shape, element))
        for n in range(shape[0]):
            if transposed:
                pack_transposed(from_array[n], to_array[n])
            else:
                pack(from_array[n], to_array[n])
    for tensor in (meta, weights, panels):
        _delete_tensor(tensor)
    _delete_status(status)


@compiled
def _packed(panels, element):
    """Packed weights as an array of units; of the length 0 where there are none."""
    return units_of(_array(panels, (_dim(panels, 0), _dim(panels, 1)), element))


@compiled
def _forward(op, element, enum, itemsize):
    status = _new_status()
    meta, x, weights = _take(op, 0, status), _take(op, 1, status), _take(op, 2, status)
    z, bias, h_before = _take(op, 4, status), _take(op, 5, status), _take(op, 6, status)
    c_initial, mask = _take(op, 7, status), _take(op, 8, status)
    first, end, steps, backward_steps, returns, keep, from_zero = _array(meta, (7,), np.int32)
    _, batch, units = _shape(c_initial)
    h_shape, kept_steps = (2, batch, units), steps if keep else 0
    gates_shape = (2, steps if _dim(weights, 0) == 0 else kept_steps, batch, GATES * units)
    mask_shape, before_shape = (_dim(mask, 0), _dim(mask, 1)), (2, kept_steps, batch, units)
    y_shape = (batch, mask_shape[1] if returns == SEQUENCE else 1, 2 * units)
    states_shape = (steps + 1 if keep else 1, 2, batch, units)
    h = _allocate(op, 0, enum, itemsize, h_shape, status)
    gates = _keep(op, 3, 1, itemsize, gates_shape, False, status)
    y = _keep(op, 9, 2, 4, y_shape, returns == MEAN, status)
    before = _keep(op, 10, 3, itemsize, before_shape, False, status)
    states = _keep(op, 11, 4, 4, states_shape, False, status)
    if _code(status):
        _fail(op, status)
    else:
        h_array = _array(h, h_shape, element)
        h_array[:] = _array(h_before, h_shape, element)
        forward(first, (end, min(end, backward_steps)), steps, returns, keep, from_zero,
                _array(x, _shape(x), element), _packed(weights, element), _array(gates, gates_shape, element),
                _array(z, _shape(z), element), _array(bias, (2, GATES * units), np.float32),
                _array(c_initial, h_shape, np.float32), _array(states, states_shape, np.float32), h_array,
                _array(before, before_shape, element), _array(mask, mask_shape, np.float32),
                _array(y, y_shape, np.float32))
    for tensor in (meta, x, weights, z, bias, h_before, c_initial, mask, h, gates, y, before, states):
        _delete_tensor(tensor)
    _delete_status(status)


@compiled
def _backward(op, element, enum, itemsize):
    status = _new_status()
    meta, x, weights = _take(op, 0, status), _take(op, 1, status), _take(op, 2, status)
    states, before, mask = _take(op, 4, status), _take(op, 5, status), _take(op, 6, status)
    d_y, d_h_later = _take(op, 7, status), _take(op, 8, status)
    first, end, steps, backward_steps, returns, _, from_zero = _array(meta, (7,), np.int32)
    here = _dim(weights, 0) > 0
    batch, units = _dim(states, 2), _dim(states, 3)
    states_shape, gates_shape = (steps + 1, 2, batch, units), (2, steps, batch, GATES * units)
    mask_shape = (_dim(mask, 0), _dim(mask, 1))
    d_z_shape = (1 if first >= backward_steps else 2, batch, units if here else GATES * units)
    d_c_shape, passed_shape, d_bias_shape = (2, batch, units), (2, mask_shape[0], units), (2, GATES * units)
    d_weights_shape = (2 if here else 0, units + _dim(x, 2), GATES * units)
    d_z = _allocate(op, 0, enum, itemsize, d_z_shape, status)
    gates = _keep(op, 3, 1, itemsize, gates_shape, False, status)
    d_c = _keep(op, 9, 2, 4, d_c_shape, True, status)
    passed = _keep(op, 10, 3, 4, passed_shape, True, status)
    d_bias = _keep(op, 11, 4, 4, d_bias_shape, True, status)
    d_weights = _allocate(op, 5, _FLOAT32, 4, d_weights_shape, status)
    if _code(status):
        _fail(op, status)
    else:
        gates_array, d_z_array = _array(gates, gates_shape, element), _array(d_z, d_z_shape, element)
        d_weights_array = _array(d_weights, d_weights_shape, np.float32)
        d_weights_array[:] = 0
        if end > backward_steps and not here:
            gates_array[1, :steps - backward_steps] = 0
        # With weights, there is no d_z, and in its place the gradient of the initial h.
        if here:
            d_z_array[:] = 0
        d_h_array = d_z_array if here else _array(d_h_later, _shape(d_h_later), element)
        backward(first, (end, min(end, backward_steps)), (steps - 1, backward_steps - 1), returns, from_zero,
                 _array(x, _shape(x), element), _packed(weights, element), gates_array,
                 _array(states, states_shape, np.float32), _array(before, (2, steps, batch, units), element),
                 _array(mask, mask_shape, np.float32), _array(d_y, _shape(d_y), np.float32), d_h_array,
                 _array(d_c, d_c_shape, np.float32), _array(passed, passed_shape, np.float32),
                 _array(d_bias, d_bias_shape, np.float32), d_weights_array, d_z_array)
    for tensor in (meta, x, weights, states, before, mask, d_y, d_h_later, d_z, gates, d_c, passed, d_bias,
                   d_weights):
        _delete_tensor(tensor)
    _delete_status(status)


@compiled
def _input_gradient(op, element, enum, itemsize):
    status = _new_status()
    meta, weights, d_gates = _take(op, 0, status), _take(op, 1, status), _take(op, 2, status)
    time, features, backward_steps = _array(meta, (3,), np.int32)
    gates_shape = (2, _dim(d_gates, 1), _dim(d_gates, 2), _dim(d_gates, 3))
    shape = (gates_shape[2], np.int64(time), np.int64(features))
    d_x = _allocate(op, 0, _FLOAT32, 4, shape, status)
    if _code(status):
        _fail(op, status)
    else:
        input_gradients(_packed(weights, element), backward_steps, _array(d_gates, gates_shape, element),
                        _array(d_x, shape, np.float32))
    for tensor in (meta, weights, d_gates, d_x):
        _delete_tensor(tensor)
    _delete_status(status)


_FLOAT32, _BFLOAT16 = tf.float32.as_datatype_enum, tf.bfloat16.as_datatype_enum


# TensorFlow calls them with the state of the kernel, of which there is none, and the operation's context.


def _group_float32(_, op):
    _group(op, np.float32, _FLOAT32, 4)


def _group_bfloat16(_, op):
    _group(op, np.uint16, _BFLOAT16, 2)


def _ungroup_any(_, op):
    _ungroup(op)


def _pack_float32(_, op):
    _pack(op, np.float32, _FLOAT32, 4)


def _pack_bfloat16(_, op):
    _pack(op, np.uint16, _BFLOAT16, 2)


def _forward_float32(_, op):
    _forward(op, np.float32, _FLOAT32, 4)


def _forward_bfloat16(_, op):
    _forward(op, np.uint16, _BFLOAT16, 2)


def _backward_float32(_, op):
    _backward(op, np.float32, _FLOAT32, 4)


def _backward_bfloat16(_, op):
    _backward(op, np.uint16, _BFLOAT16, 2)


def _input_gradient_float32(_, op):
    _input_gradient(op, np.float32, _FLOAT32, 4)


def _input_gradient_bfloat16(_, op):
    _input_gradient(op, np.uint16, _BFLOAT16, 2)


# In the order of OPERATIONS.
_KERNELS = {
    tf.float32: (_group_float32, _ungroup_any, _pack_float32, _forward_float32, _backward_float32,
                 _input_gradient_float32),
    tf.bfloat16: (_group_bfloat16, _ungroup_any, _pack_bfloat16, _forward_bfloat16, _backward_bfloat16,
                  _input_gradient_bfloat16),
}
_kernel = kept(numba.cfunc(types.void(_address, _address), cache=True))


@cache
def _compile(dtype):
    """The kernels for one type T; TensorFlow calls them as long as the process lives."""
    return {name: _kernel(function) for name, function in zip(OPERATIONS, _KERNELS[dtype])}


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


def multiplies_here(dtype):
    """Whether a layer's matrix products are done in the operations of this file, rather than by TensorFlow.

    In bfloat16 they are where the processor has the instructions for it, but no unit for whole matrices.
    """
    return dtype == tf.float32 or multiplies_bfloat16()


_of_thread = threading.local()


@contextmanager
def whole_batches():
    """Layers whose graph is built meanwhile, in this thread, run as one operation a batch.

    For those who keep every core busy with a batch of its own.
    """
    before, _of_thread.whole_batches = getattr(_of_thread, "whole_batches", False), True
    try:
        yield
    finally:
        _of_thread.whole_batches = before


def parts_of_a_batch():
    """Into how many operations to cut a batch: as many as TensorFlow runs at the same time."""
    if getattr(_of_thread, "whole_batches", False):
        return 1
    return (tf.config.threading.get_inter_op_parallelism_threads()
            or int(os.environ.get("TF_NUM_INTEROP_THREADS", 0))
            or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()))


def grouped(parameters, dtype):
    """Weights and biases in the order of `lstm_step.py`, of whole groups of cells.

    Args:
        parameters: kernels, recurrent kernels and biases of Keras's layers, forward, backward of each.

    Returns:
        `(2, cells + features, 4 * cells)` of the given type, and float32 `(2, 4 * cells)`.
    """
    weights, bias = operation("BilstmGroup", dtype, *parameters)
    features, cells = parameters[0].shape[0], padded(parameters[2].shape[0])
    weights.set_shape((2, cells + features, GATES * cells))
    bias.set_shape((2, GATES * cells))
    return weights, bias


def ungrouped(units, weights, bias, dtype):
    """The reverse of `grouped`, for its gradients, which are float32."""
    return operation("BilstmUngroup", dtype, tf.constant([units], tf.int32), weights, bias)


def packed(weights, transposed=False):
    """`(2, depth, columns)`, or transposed, in the order in which `products.multiply` reads them."""
    return operation("BilstmPack", weights.dtype, tf.constant([transposed], tf.int32), weights)[0]
