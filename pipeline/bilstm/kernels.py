"""The bodies of the layer's TensorFlow operations, compiled by Numba: what `ops.py` registers.

Each takes its inputs from TensorFlow's C interface (tensorflow/c/kernels.h), allocates its outputs there,
and calls `recurrence.py` or `weights.py` with arrays that lie in TensorFlow's memory. So no step waits for
Python, and no compiler needs to be installed.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import tensorflow as tf
from numba.core import types
from numba.extending import intrinsic, overload

from pipeline.bilstm import tiles
from pipeline.bilstm.backward import backward
from pipeline.bilstm.forward import forward
from pipeline.bilstm.isa import uses
from pipeline.bilstm.jit import cached, compiled
from pipeline.bilstm.matmul import as_words, padded, words_in
from pipeline.bilstm.recurrence import GATES, SEQUENCE
from pipeline.bilstm.weights import deinterleave_gradients, pack_parameters

# The numbers in the operations' input `meta`, int32.
STEPS, BACKWARD_STEPS, RETURNS, KEEP, FROM_ZERO, UNITS, WITH_INPUT = range(7)

LIBRARY = str(next(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.*")))
llvmlite.binding.load_library_permanently(LIBRARY)
_address, _int, _long = types.uintp, types.int32, types.int64
_FLOAT32, _BFLOAT16 = tf.float32.as_datatype_enum, tf.bfloat16.as_datatype_enum


def _external(name, result, *arguments):
    return types.ExternalFunction(name, result(*arguments))


_get_input = _external("TF_GetInput", types.void, _address, _int, _address, _address)
_data = _external("TF_TensorData", _address, _address)
_dim = _external("TF_Dim", _long, _address, _int)
_delete_tensor = _external("TF_DeleteTensor", types.void, _address)
_allocate_output = _external(
    "TF_AllocateOutput", _address, _address, _int, _int, _address, _int, _address, _address
)
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
def _matrix(tensor, element):
    return _array(tensor, (_dim(tensor, 0), _dim(tensor, 1)), element)


@compiled
def _shape(tensor):
    return _dim(tensor, 0), _dim(tensor, 1), _dim(tensor, 2)


@compiled
def _input(op, number, status):
    """An input's tensor, to be deleted."""
    slot = np.zeros(1, np.uintp)
    _get_input(op, number, slot.ctypes.data, status)
    return slot[0]


@compiled
def _output(op, number, enum, itemsize, shape, status):
    """An output's new tensor, to be deleted; 0 if there is no memory for it or for an earlier one."""
    # A later call would overwrite the error status.
    if _code(status):
        return np.uintp(0)
    dims = np.array(shape, np.int64)
    tensor = _allocate_output(op, number, enum, dims.ctypes.data, len(dims), dims.prod() * itemsize, status)
    # Touch `dims` after the call; otherwise Numba may free it while C still holds its address.
    return tensor if len(dims) > 0 else np.uintp(0)


def _begin_products(element):
    """Prepare this thread for `multiply`; returns what `_end_products` needs."""


@overload(_begin_products)
def _begin_products_of(element):
    if uses("amx") and element.dtype == types.uint16:
        return lambda element: tiles.configure_tiles()
    return lambda element: None


def _end_products(before):
    """Leave the thread as it was before `_begin_products`."""


@overload(_end_products)
def _end_products_of(before):
    if isinstance(before, types.NoneType):
        return lambda before: None
    return lambda before: tiles.restore_tiles(before)


@compiled
def _pack(op, element, enum, itemsize):
    status = _new_status()
    meta, kernel, kernel_back = _input(op, 0, status), _input(op, 1, status), _input(op, 2, status)
    recurrent, recurrent_back = _input(op, 3, status), _input(op, 4, status)
    bias, bias_back = _input(op, 5, status), _input(op, 6, status)
    features, units = _dim(kernel, 0), _dim(recurrent, 0)
    cells, columns = padded(units), GATES * units
    keep = _array(meta, (WITH_INPUT + 1,), np.int32)[KEEP]
    words = words_in(np.zeros(0, element), cells + features)
    panels_shape = (2, GATES * cells * words * (4 // itemsize))
    transposed_shape = (2, GATES * cells * (cells + padded(features)) if keep else 0)
    panels = _output(op, 0, enum, itemsize, panels_shape, status)
    transposed = _output(op, 1, enum, itemsize, transposed_shape, status)
    packed_bias = _output(op, 2, _FLOAT32, 4, (2, GATES * cells), status)
    if _code(status):
        _fail(op, status)
    else:
        panels_array, transposed_array = _matrix(panels, element), _matrix(transposed, element)
        bias_array = _matrix(packed_bias, np.float32)
        pack_parameters(
            _matrix(kernel, np.float32),
            _matrix(recurrent, np.float32),
            _array(bias, (1, columns), np.float32),
            panels_array[0],
            transposed_array[0],
            bias_array[:1],
        )
        pack_parameters(
            _matrix(kernel_back, np.float32),
            _matrix(recurrent_back, np.float32),
            _array(bias_back, (1, columns), np.float32),
            panels_array[1],
            transposed_array[1],
            bias_array[1:],
        )
    for tensor in (
        meta,
        kernel,
        kernel_back,
        recurrent,
        recurrent_back,
        bias,
        bias_back,
        panels,
        transposed,
        packed_bias,
    ):
        _delete_tensor(tensor)
    _delete_status(status)


@compiled
def _forward(op, element, enum, itemsize):
    status = _new_status()
    meta, x, panels, bias = (
        _input(op, 0, status),
        _input(op, 1, status),
        _input(op, 2, status),
        _input(op, 3, status),
    )
    h0, c0, mask = _input(op, 4, status), _input(op, 5, status), _input(op, 6, status)
    numbers = _array(meta, (WITH_INPUT + 1,), np.int32)
    steps, returns, keep = numbers[STEPS], numbers[RETURNS], numbers[KEEP]
    batch, time, cells = _dim(x, 0), _dim(x, 1), _dim(bias, 1) // GATES
    kept_steps = steps + 1 if keep else 0
    gates_shape, states_shape = (2, kept_steps, batch, GATES * cells), (2, kept_steps, batch, cells)
    y_shape = (batch, time if returns == SEQUENCE else 1, 2 * cells)
    gates = _output(op, 0, enum, itemsize, gates_shape, status)
    h_kept = _output(op, 1, enum, itemsize, states_shape, status)
    c_kept = _output(op, 2, enum, itemsize, states_shape, status)
    y = _output(op, 3, _FLOAT32, 4, y_shape, status)
    if _code(status):
        _fail(op, status)
    else:
        before = _begin_products(np.zeros(0, element))
        forward(
            (steps, numbers[BACKWARD_STEPS]),
            returns,
            keep,
            _array(x, _shape(x), np.float32),
            as_words(_matrix(panels, element)),
            _matrix(bias, np.float32),
            _array(h0, _shape(h0), np.float32),
            _array(c0, _shape(c0), np.float32),
            _matrix(mask, np.float32),
            _array(gates, gates_shape, element),
            _array(h_kept, states_shape, element),
            _array(c_kept, states_shape, element),
            _array(y, y_shape, np.float32),
        )
        _end_products(before)
    for tensor in (meta, x, panels, bias, h0, c0, mask, gates, h_kept, c_kept, y):
        _delete_tensor(tensor)
    _delete_status(status)


@compiled
def _backward(op, element, enum, itemsize):
    status = _new_status()
    meta, x, transposed = _input(op, 0, status), _input(op, 1, status), _input(op, 2, status)
    gates, h_kept, c_kept = _input(op, 3, status), _input(op, 4, status), _input(op, 5, status)
    mask, d_y = _input(op, 6, status), _input(op, 7, status)
    numbers = _array(meta, (WITH_INPUT + 1,), np.int32)
    steps, from_zero, units = numbers[STEPS], numbers[FROM_ZERO], np.int64(numbers[UNITS])
    batch, time, features = _shape(x)
    cells = _dim(h_kept, 3)
    kept_steps = np.int64(steps) + 1
    gates_shape, states_shape = (2, kept_steps, batch, GATES * cells), (2, kept_steps, batch, cells)
    initial_shape = (0 if from_zero else 2, batch, cells)
    x_shape = (batch if numbers[WITH_INPUT] else 0, time, features)
    columns = GATES * units
    d_kernel = _output(op, 0, _FLOAT32, 4, (features, columns), status)
    d_kernel_back = _output(op, 1, _FLOAT32, 4, (features, columns), status)
    d_recurrent = _output(op, 2, _FLOAT32, 4, (units, columns), status)
    d_recurrent_back = _output(op, 3, _FLOAT32, 4, (units, columns), status)
    d_bias = _output(op, 4, _FLOAT32, 4, (columns,), status)
    d_bias_back = _output(op, 5, _FLOAT32, 4, (columns,), status)
    d_h0 = _output(op, 6, _FLOAT32, 4, initial_shape, status)
    d_c0 = _output(op, 7, _FLOAT32, 4, initial_shape, status)
    d_x = _output(op, 8, _FLOAT32, 4, x_shape, status)
    if _code(status):
        _fail(op, status)
    else:
        d_weights = np.empty((2, cells + padded(features), GATES * cells), np.float32)
        d_biases = np.empty((2, GATES * cells), np.float32)
        before = _begin_products(np.zeros(0, element))
        backward(
            (steps, numbers[BACKWARD_STEPS]),
            numbers[RETURNS],
            from_zero,
            _array(x, (batch, time, features), np.float32),
            as_words(_matrix(transposed, element)),
            _array(gates, gates_shape, element),
            _array(h_kept, states_shape, element),
            _array(c_kept, states_shape, element),
            _matrix(mask, np.float32),
            _array(d_y, _shape(d_y), np.float32),
            _array(d_h0, initial_shape, np.float32),
            _array(d_c0, initial_shape, np.float32),
            d_biases,
            d_weights,
            _array(d_x, x_shape, np.float32),
        )
        _end_products(before)
        deinterleave_gradients(
            d_weights[0],
            d_biases[:1],
            _matrix(d_kernel, np.float32),
            _matrix(d_recurrent, np.float32),
            _array(d_bias, (1, columns), np.float32),
        )
        deinterleave_gradients(
            d_weights[1],
            d_biases[1:],
            _matrix(d_kernel_back, np.float32),
            _matrix(d_recurrent_back, np.float32),
            _array(d_bias_back, (1, columns), np.float32),
        )
    for tensor in (
        meta,
        x,
        transposed,
        gates,
        h_kept,
        c_kept,
        mask,
        d_y,
        d_kernel,
        d_kernel_back,
        d_recurrent,
        d_recurrent_back,
        d_bias,
        d_bias_back,
        d_h0,
        d_c0,
        d_x,
    ):
        _delete_tensor(tensor)
    _delete_status(status)


# TensorFlow calls them with the kernel's state, of which there is none, and the operation's context.


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


_BODIES = {
    tf.float32: {
        "BilstmPack": _pack_float32,
        "BilstmForward": _forward_float32,
        "BilstmBackward": _backward_float32,
    },
    tf.bfloat16: {
        "BilstmPack": _pack_bfloat16,
        "BilstmForward": _forward_bfloat16,
        "BilstmBackward": _backward_bfloat16,
    },
}
_cfunc = cached(numba.cfunc(types.void(_address, _address), cache=True))


@cache
def compile_bodies(dtype: tf.DType) -> dict[str, Callable]:
    """The operations' bodies for one type of operands; TensorFlow calls them as long as the process lives."""
    return {name: _cfunc(body) for name, body in _BODIES[dtype].items()}
