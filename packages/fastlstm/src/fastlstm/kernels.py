"""Bodies of the TensorFlow operations, which `ops.py` registers.

They are compiled functions that read inputs and allocate outputs through TensorFlow's C API
(tensorflow/c/kernels.h). TensorFlow calls them without Python, so no step waits for the interpreter.
The input `meta` holds int32 numbers at the indices `STEPS` and following.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding
import numba
import numpy as np
import tensorflow as tf
from numba.core import types
from numba.extending import intrinsic

from fastlstm.backward import backward
from fastlstm.forward import forward
from fastlstm.jit import compile_and_announce, constant, inner
from fastlstm.matmul import TILE, round_up
from fastlstm.recurrence import GATES, SEQUENCE, Plan, SavedActivations
from fastlstm.simd import FOUR, LANES
from fastlstm.weights import pack_parameters, unpack_gradients

STEPS, BACKWARD_STEPS, RETURNS, SAVE, UNITS, WITH_X = range(6)
_NUMBERS = 6
LIBRARY = str(next(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.*")))
llvmlite.binding.load_library_permanently(LIBRARY)
_address, _int, _long = types.uintp, types.int32, types.int64
_RESOURCE_EXHAUSTED = 8  # tensorflow/c/tf_status.h
_NO_MEMORY = np.frombuffer(b"fastlstm: no memory for an operation's scratch arrays\0", np.uint8)


def _external(name, result, *arguments):
    return types.ExternalFunction(name, result(*arguments))


_num_inputs = _external("TF_NumInputs", _int, _address)
_num_outputs = _external("TF_NumOutputs", _int, _address)
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


class _Call(NamedTuple):
    """Addresses of an operation's context, its status and its inputs' and outputs' tensors."""

    op: int
    status: int
    tensors: np.ndarray
    inputs: int


@intrinsic
def _pointer(typing_context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@constant
def _type_enum(dtype):
    return (tf.float32 if dtype == types.float32 else tf.bfloat16).as_datatype_enum


@inner
def _begin(op):
    inputs, status = _num_inputs(op), _new_status()
    tensors = np.zeros(inputs + _num_outputs(op), np.uintp)
    for number in range(inputs):
        _get_input(op, number, tensors[number:].ctypes.data, status)
    return _Call(op, status, tensors, inputs)


@inner
def _vector(call, number):
    """A parameter, flat."""
    tensor = call.tensors[number]
    return numba.carray(_pointer(_data(tensor)), (_dim(tensor, 0),), np.float32)


@inner
def _matrix(call, number, element):
    tensor = call.tensors[number]
    return numba.carray(_pointer(_data(tensor)), (_dim(tensor, 0), _dim(tensor, 1)), element)


@inner
def _cube(call, number):
    tensor = call.tensors[number]
    shape = _dim(tensor, 0), _dim(tensor, 1), _dim(tensor, 2)
    return numba.carray(_pointer(_data(tensor)), shape, np.float32)


@inner
def _states(call, number, element):
    tensor = call.tensors[number]
    shape = _dim(tensor, 0), _dim(tensor, 1), _dim(tensor, 2), _dim(tensor, 3)
    return numba.carray(_pointer(_data(tensor)), shape, element)


@inner
def _plan(call):
    meta = numba.carray(_pointer(_data(call.tensors[0])), (_NUMBERS,), np.int32)
    return meta, Plan((np.int64(meta[STEPS]), np.int64(meta[BACKWARD_STEPS])), meta[RETURNS], meta[SAVE] != 0)


@inner
def _output(call, number, shape, like):
    """A new output; not to be used if there is no memory for it or for an earlier one."""
    dims, data = np.array(shape, np.int64), np.uintp(0)
    # A later call would overwrite the error status.
    if not _code(call.status):
        size = dims.prod() * like.itemsize
        tensor = _allocate_output(
            call.op, number, _type_enum(like), dims.ctypes.data, len(dims), size, call.status
        )
        call.tensors[call.inputs + number] = tensor
        # Use `dims` after the call; otherwise Numba may free it while C still holds its address.
        if tensor != 0 and len(dims) > 0:
            data = _data(tensor)
    return numba.carray(_pointer(data), shape, like.dtype)


@inner
def _end(call):
    """Report a failure to TensorFlow, and delete the handles."""
    if _code(call.status):
        _fail(call.op, call.status)
    for tensor in call.tensors:
        if tensor != 0:
            _delete_tensor(tensor)
    _delete_status(call.status)


@inner
def _no_memory(call):
    _set_status(call.status, _RESOURCE_EXHAUSTED, _NO_MEMORY.ctypes.data)


@inner
def _pack(op, like):
    """Inputs: meta, parameters. Outputs: packed, transposed, bias: one row per direction."""
    call, floats = _begin(op), np.zeros(0, np.float32)
    directions = (call.inputs - 1) // 3
    features, units = _dim(call.tensors[1], 0), _dim(call.tensors[1 + directions], 0)
    cells = round_up(units, LANES)
    size = GATES * cells * round_up(cells + features, TILE)
    size_transposed = GATES * cells * (cells + round_up(features, LANES)) if _plan(call)[1].save else 0
    packed = _output(call, 0, (directions, size), like)
    transposed = _output(call, 1, (directions, size_transposed), like)
    bias = _output(call, 2, (directions, GATES * cells), floats)
    if not _code(call.status):
        try:
            for d in range(directions):
                pack_parameters(
                    _matrix(call, 1 + d, np.float32),
                    _matrix(call, 1 + directions + d, np.float32),
                    _vector(call, 1 + 2 * directions + d),
                    packed[d],
                    transposed[d],
                    bias[d],
                )
        except Exception:
            _no_memory(call)
    _end(call)


@inner
def _forward(op, like):
    """Inputs: meta, x, mask, packed, bias. Outputs: y, and `SavedActivations`."""
    call, floats = _begin(op), np.zeros(0, np.float32)
    _, plan = _plan(call)
    x, bias = _cube(call, 1), _matrix(call, 4, np.float32)
    directions, cells = len(bias), bias.shape[1] // GATES
    y = _output(call, 0, (len(x), x.shape[1] if plan.returns == SEQUENCE else 1, directions * cells), floats)
    steps, rows = plan.steps[0] + 1 if plan.save else 0, round_up(len(x), FOUR)
    saved = SavedActivations(
        _output(call, 1, (directions, steps, rows, GATES * cells), like),
        _output(call, 2, (directions, steps, rows, cells), like),
        _output(call, 3, (directions, steps, rows, cells), like),
    )
    if not _code(call.status):
        try:
            forward(plan, x, _matrix(call, 3, like.dtype), bias, _matrix(call, 2, np.float32), saved, y)
        except Exception:
            _no_memory(call)
    _end(call)


@inner
def _backward(op, like):
    """Inputs: meta, d_y, x, mask, transposed, `SavedActivations`. Outputs: gradients of x and parameters."""
    call, floats = _begin(op), np.zeros(0, np.float32)
    meta, plan = _plan(call)
    x, h = _cube(call, 2), _states(call, 6, like.dtype)
    saved = SavedActivations(_states(call, 5, like.dtype), h, _states(call, 7, like.dtype))
    directions, cells, features = len(h), h.shape[3], x.shape[2]
    units, columns = np.int64(meta[UNITS]), GATES * cells
    d_x = _output(call, 0, (len(x) if meta[WITH_X] else 0, x.shape[1], features), floats)
    for d in range(directions):
        _output(call, 1 + d, (features, GATES * units), floats)
        _output(call, 1 + directions + d, (units, GATES * units), floats)
        _output(call, 1 + 2 * directions + d, (GATES * units,), floats)
    if not _code(call.status):
        try:
            rows = cells + round_up(features, LANES)
            d_weights = np.empty((directions, columns // LANES, rows, LANES), np.float32)
            d_bias = np.empty((directions, columns), np.float32)
            mask, d_y = _matrix(call, 3, np.float32), _cube(call, 1)
            backward(plan, x, _matrix(call, 4, like.dtype), saved, mask, d_y, d_bias, d_weights, d_x)
            first = call.inputs + 1
            for d in range(directions):
                unpack_gradients(
                    d_weights[d],
                    d_bias[d],
                    _matrix(call, first + d, np.float32),
                    _matrix(call, first + directions + d, np.float32),
                    _vector(call, first + 2 * directions + d),
                )
        except Exception:
            _no_memory(call)
    _end(call)


# TensorFlow calls them with the kernel's state, which is null, and the operation's context.


def _pack_float32(_, op):
    _pack(op, np.zeros(0, np.float32))


def _pack_bfloat16(_, op):
    _pack(op, np.zeros(0, np.uint16))


def _forward_float32(_, op):
    _forward(op, np.zeros(0, np.float32))


def _forward_bfloat16(_, op):
    _forward(op, np.zeros(0, np.uint16))


def _backward_float32(_, op):
    _backward(op, np.zeros(0, np.float32))


def _backward_bfloat16(_, op):
    _backward(op, np.zeros(0, np.uint16))


_BODIES = {
    tf.float32: {"Pack": _pack_float32, "Forward": _forward_float32, "Backward": _backward_float32},
    tf.bfloat16: {"Pack": _pack_bfloat16, "Forward": _forward_bfloat16, "Backward": _backward_bfloat16},
}


@cache
def compile_bodies(dtype: tf.DType) -> dict[str, Callable]:
    """The operations' bodies for one type of operands; TensorFlow calls them as long as the process lives."""
    return compile_and_announce(dtype.name, _BODIES[dtype], types.void(_address, _address))
