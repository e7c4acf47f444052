"""The bodies of the layer's TensorFlow operations, compiled by Numba: what `ops.py` registers.

Each takes its inputs from TensorFlow's C interface (tensorflow/c/kernels.h), allocates its outputs there,
and calls `recurrence.py` or `weights.py` with arrays that lie in TensorFlow's memory. So no step waits for
Python, and no compiler needs to be installed.
"""

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import tensorflow as tf
from numba.core import types
from numba.extending import intrinsic, overload
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastlstm import tiles
from fastlstm.backward import backward
from fastlstm.forward import forward
from fastlstm.isa import uses
from fastlstm.jit import cached, compiled, lock
from fastlstm.matmul import PANEL, as_words, padded, words_in
from fastlstm.recurrence import GATES, SEQUENCE, Kept, Plan
from fastlstm.weights import deinterleave_gradients, pack_parameters

# The numbers in the operations' input `meta`, int32.
STEPS, BACKWARD_STEPS, RETURNS, KEEP, FROM_ZERO, UNITS, WITH_INPUT = range(7)

LIBRARY = str(next(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.*")))
llvmlite.binding.load_library_permanently(LIBRARY)
_address, _int, _long = types.uintp, types.int32, types.int64
_RESOURCE_EXHAUSTED = 8  # tensorflow/c/tf_status.h
_NO_MEMORY = np.frombuffer(b"BiLSTM: no memory for an operation's scratch arrays\0", np.uint8)
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
_set_status = _external("TF_SetStatus", types.void, _address, _int, _address)
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
def _inputs(op, count, status):
    """The tensors of all inputs, to be deleted."""
    tensors = np.zeros(count, np.uintp)
    for number in range(count):
        _get_input(op, number, tensors[number:].ctypes.data, status)
    return tensors


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
def _no_memory(status):
    _set_status(status, _RESOURCE_EXHAUSTED, _NO_MEMORY.ctypes.data)


@compiled
def _numbers(meta):
    """The operations' input `meta`; its plan."""
    numbers = _array(meta, (WITH_INPUT + 1,), np.int32)
    steps = np.int64(numbers[STEPS]), np.int64(numbers[BACKWARD_STEPS])
    return numbers, Plan(steps, numbers[RETURNS], numbers[KEEP] != 0, numbers[FROM_ZERO] != 0)


@compiled
def _finish(op, status, inputs, outputs):
    """Report a failure to TensorFlow, and delete what the operation was given."""
    if _code(status):
        _fail(op, status)
    for tensor in inputs:
        _delete_tensor(tensor)
    for tensor in outputs:
        _delete_tensor(tensor)
    _delete_status(status)


@compiled
def _pack(op, element, enum, itemsize):
    status = _new_status()
    inputs = _inputs(op, 7, status)
    features, units = _dim(inputs[1], 0), _dim(inputs[3], 0)
    cells, columns = padded(units), GATES * units
    words = words_in(np.zeros(0, element), cells + features)
    transposed = GATES * cells * (cells + padded(features)) if _numbers(inputs[0])[1].keep else 0
    outputs = (
        _output(op, 0, enum, itemsize, (2, GATES * cells * words * (4 // itemsize)), status),
        _output(op, 1, enum, itemsize, (2, transposed), status),
        _output(op, 2, _FLOAT32, 4, (2, GATES * cells), status),
    )
    if not _code(status):
        try:
            bias = _matrix(outputs[2], np.float32)
            for d in range(2):
                pack_parameters(
                    _matrix(inputs[1 + d], np.float32),
                    _matrix(inputs[3 + d], np.float32),
                    _array(inputs[5 + d], (1, columns), np.float32),
                    _matrix(outputs[0], element)[d],
                    _matrix(outputs[1], element)[d],
                    bias[d : d + 1],
                )
        except Exception:
            _no_memory(status)
    _finish(op, status, inputs, outputs)


@compiled
def _forward(op, element, enum, itemsize):
    status = _new_status()
    inputs = _inputs(op, 7, status)
    meta, x, panels, bias, h0, c0, mask = to_fixed_tuple(inputs, 7)
    _, plan = _numbers(meta)
    batch, time, cells = _dim(x, 0), _dim(x, 1), _dim(bias, 1) // GATES
    states = 2, plan.steps[0] + 1 if plan.keep else 0, batch, cells
    gates = (*states[:3], GATES * cells)
    y = batch, time if plan.returns == SEQUENCE else 1, 2 * cells
    outputs = (
        _output(op, 0, enum, itemsize, gates, status),
        _output(op, 1, enum, itemsize, states, status),
        _output(op, 2, enum, itemsize, states, status),
        _output(op, 3, _FLOAT32, 4, y, status),
    )
    if not _code(status):
        before = _begin_products(np.zeros(0, element))
        try:
            forward(
                plan,
                _array(x, _shape(x), np.float32),
                as_words(_matrix(panels, element)),
                _matrix(bias, np.float32),
                _array(h0, _shape(h0), np.float32),
                _array(c0, _shape(c0), np.float32),
                _matrix(mask, np.float32),
                Kept(
                    _array(outputs[0], gates, element),
                    _array(outputs[1], states, element),
                    _array(outputs[2], states, element),
                ),
                _array(outputs[3], y, np.float32),
            )
        except Exception:
            _no_memory(status)
        _end_products(before)
    _finish(op, status, inputs, outputs)


@compiled
def _backward(op, element, enum, itemsize):
    status = _new_status()
    inputs = _inputs(op, 8, status)
    meta, x, transposed, gates, h, c, mask, d_y = to_fixed_tuple(inputs, 8)
    numbers, plan = _numbers(meta)
    batch, time, features = _shape(x)
    units, cells = np.int64(numbers[UNITS]), _dim(h, 3)
    states, columns = (2, plan.steps[0] + 1, batch, cells), GATES * units
    gates_shape = (*states[:3], GATES * cells)
    initial = 0 if plan.from_zero else 2, batch, cells
    d_x = batch if numbers[WITH_INPUT] else 0, time, features
    outputs = (
        _output(op, 0, _FLOAT32, 4, (features, columns), status),
        _output(op, 1, _FLOAT32, 4, (features, columns), status),
        _output(op, 2, _FLOAT32, 4, (units, columns), status),
        _output(op, 3, _FLOAT32, 4, (units, columns), status),
        _output(op, 4, _FLOAT32, 4, (columns,), status),
        _output(op, 5, _FLOAT32, 4, (columns,), status),
        _output(op, 6, _FLOAT32, 4, initial, status),
        _output(op, 7, _FLOAT32, 4, initial, status),
        _output(op, 8, _FLOAT32, 4, d_x, status),
    )
    if not _code(status):
        before = _begin_products(np.zeros(0, element))
        try:
            rows = cells + padded(features)
            d_weights = np.empty((2, GATES * cells // PANEL, rows, PANEL), np.float32)
            d_bias = np.empty((2, GATES * cells), np.float32)
            backward(
                plan,
                _array(x, (batch, time, features), np.float32),
                as_words(_matrix(transposed, element)),
                Kept(
                    _array(gates, gates_shape, element),
                    _array(h, states, element),
                    _array(c, states, element),
                ),
                _matrix(mask, np.float32),
                _array(d_y, _shape(d_y), np.float32),
                _array(outputs[6], initial, np.float32),
                _array(outputs[7], initial, np.float32),
                d_bias,
                d_weights,
                _array(outputs[8], d_x, np.float32),
            )
            for d in range(2):
                deinterleave_gradients(
                    d_weights[d],
                    d_bias[d : d + 1].reshape((1, 1, GATES * cells)),
                    _matrix(outputs[d], np.float32),
                    _matrix(outputs[2 + d], np.float32),
                    _array(outputs[4 + d], (1, columns), np.float32),
                )
        except Exception:
            _no_memory(status)
        _end_products(before)
    _finish(op, status, inputs, outputs)


# TensorFlow calls them with the kernel's state, which is null, and the operation's context.


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


# The slowest to compile first.
_BODIES = {
    tf.float32: {
        "BilstmBackward": _backward_float32,
        "BilstmForward": _forward_float32,
        "BilstmPack": _pack_float32,
    },
    tf.bfloat16: {
        "BilstmBackward": _backward_bfloat16,
        "BilstmForward": _forward_bfloat16,
        "BilstmPack": _pack_bfloat16,
    },
}
# Seconds after which a process compiles what another one seems to compile: that one may be stopped.
PATIENCE = 120
_cfunc = cached(numba.cfunc(types.void(_address, _address), cache=True))


@cache
def compile_bodies(dtype: tf.DType) -> dict[str, Callable]:
    """The operations' bodies for one type of operands; TensorFlow calls them as long as the process lives.

    Processes that start at the same time share the work: each compiles what no other one does, and finds the
    rest in the cache.
    """
    missing, bodies = dict(_BODIES[dtype]), {}
    patience = time.monotonic() + PATIENCE
    while missing:
        for name in list(missing):
            with lock(f"{name}_{dtype.name}", wait=False) as held:
                if held or time.monotonic() > patience:
                    bodies[name] = _cfunc(missing.pop(name))
        if missing:
            time.sleep(0.1)
    return bodies
