"""Body of the TensorFlow operations, which `ops.py` registers.

It is a compiled function that reads inputs and allocates outputs through TensorFlow's C API
(tensorflow/c/kernels.h). TensorFlow calls it without Python, so no step waits for the interpreter.
The first input, `meta`, holds int32 numbers at the indices from `OPERATION` to `WITH_X`.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding
import numba
import numpy as np
import tensorflow as tf
from llvmlite import ir
from numba.core import types

from fastlstm.backward import backward
from fastlstm.forward import forward
from fastlstm.jit import compile_and_announce, constant, inner
from fastlstm.matmul import on_tiles, round_up
from fastlstm.recurrence import GATES, SEQUENCE, Plan, SavedActivations
from fastlstm.simd import LANES, SAMPLES, TILE, instruction, pointer
from fastlstm.tiles import configure_tiles, load_configuration
from fastlstm.weights import pack_parameters, unpack_gradients

OPERATION, STEPS, BACKWARD_STEPS, RETURNS, SAVE, UNITS, DIRECTIONS, WITH_X = range(8)
PACK, FORWARD = range(2)
_FLOATS, _INTS = np.zeros(0, np.float32), np.zeros(0, np.int32)
LIBRARY = str(next(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.*")))
llvmlite.binding.load_library_permanently(LIBRARY)
_address, _int, _long = types.uintp, types.int32, types.int64
_RESOURCE_EXHAUSTED = 8  # tensorflow/c/tf_status.h
_NO_MEMORY = np.frombuffer(b"fastlstm: no memory for an operation's scratch arrays\0", np.uint8)


_external = types.ExternalFunction
_num_inputs = _external("TF_NumInputs", _int(_address))
_num_outputs = _external("TF_NumOutputs", _int(_address))
_get_input = _external("TF_GetInput", types.void(_address, _int, _address, _address))
_data = _external("TF_TensorData", _address(_address))
_dim = _external("TF_Dim", _long(_address, _int))
_delete_tensor = _external("TF_DeleteTensor", types.void(_address))
_allocate_output = _external(
    "TF_AllocateOutput", _address(_address, _int, _int, _address, _int, _address, _address)
)
_new_status = _external("TF_NewStatus", _address())
_code = _external("TF_GetCode", _int(_address))
_delete_status = _external("TF_DeleteStatus", types.void(_address))
_set_status = _external("TF_SetStatus", types.void(_address, _int, _address))
_fail = _external("TF_OpKernelContext_Failure", types.void(_address, _address))


class _Call(NamedTuple):
    """Addresses of an operation's context, its status and its inputs' and outputs' tensors."""

    op: int
    status: int
    tensors: np.ndarray
    inputs: int


@instruction(lambda address: types.voidptr)
def _pointer(builder, address):
    return builder.inttoptr(address, ir.IntType(8).as_pointer())


@constant
def _type_enum(dtype):
    return (tf.float32 if dtype == types.float32 else tf.bfloat16).as_datatype_enum


@inner
def _array(call, number, shape, like):
    """An input."""
    return numba.carray(_pointer(_data(call.tensors[number])), shape, like.dtype)


@inner
def _allocate(call, number, shape, like):
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
def _pack(call, directions, units, plan, like):
    """Inputs: meta, parameters. Outputs: packed, transposed, bias: one row per direction."""
    features, cells = _dim(call.tensors[1], 0), round_up(units, LANES)
    columns, back = GATES * cells, cells + round_up(features, LANES) if plan.save else 0
    packed = _allocate(call, 0, (directions, columns * round_up(cells + features, TILE)), like)
    transposed = _allocate(call, 1, (directions, columns * back), like)
    bias = _allocate(call, 2, (directions, columns), _FLOATS)
    if not _code(call.status):
        for d in range(directions):
            kernel = _array(call, 1 + d, (features, GATES * units), _FLOATS)
            recurrent = _array(call, 1 + directions + d, (units, GATES * units), _FLOATS)
            biases = _array(call, 1 + 2 * directions + d, (GATES * units,), _FLOATS)
            pack_parameters(kernel, recurrent, biases, packed[d], transposed[d], bias[d])


@inner
def _shapes(tensors, directions, units, plan):
    """Shapes of x, mask, y and `SavedActivations.h`, from the tensors of x and mask."""
    batch, time, cells = _dim(tensors[0], 0), _dim(tensors[0], 1), round_up(units, LANES)
    y = batch, time if plan.returns == SEQUENCE else 1, directions * cells
    h = directions, plan.steps[0] + 1 if plan.save else 0, round_up(batch, SAMPLES), cells
    return (batch, time, _dim(tensors[0], 2)), (_dim(tensors[1], 0), time), y, h


@inner
def _forward(call, directions, units, plan, like):
    """Inputs: meta, x, mask, packed, bias. Outputs: y, and `SavedActivations`."""
    x, mask, y, h = _shapes(call.tensors[1:], directions, units, plan)
    outputs, gates = _allocate(call, 0, y, _FLOATS), (h[0], h[1], h[2], GATES * h[3])
    saved = SavedActivations(
        _allocate(call, 1, gates, like), _allocate(call, 2, h, like), _allocate(call, 3, h, like)
    )
    if not _code(call.status):
        packed = directions, GATES * h[3] * round_up(h[3] + x[2], TILE)
        forward(
            plan,
            _array(call, 1, x, _FLOATS),
            _array(call, 3, packed, like),
            _array(call, 4, (directions, GATES * h[3]), _FLOATS),
            _array(call, 2, mask, _FLOATS),
            saved,
            outputs,
        )


@inner
def _backward(call, directions, units, plan, with_x, like):
    """Inputs: meta, d_y, x, mask, transposed, `SavedActivations`. Outputs: gradients of x and parameters."""
    x, mask, y, h = _shapes(call.tensors[2:], directions, units, plan)
    features, cells, columns = x[2], h[3], GATES * h[3]
    rows = cells + round_up(features, LANES)
    saved = SavedActivations(
        _array(call, 5, (h[0], h[1], h[2], columns), like), _array(call, 6, h, like), _array(call, 7, h, like)
    )
    d_x = _allocate(call, 0, (x[0] if with_x else 0, x[1], features), _FLOATS)
    if not _code(call.status):
        d_weights = np.zeros((directions, columns // LANES, rows, LANES), np.float32)
        d_bias = np.zeros((directions, columns), np.float32)
        backward(
            plan,
            _array(call, 2, x, _FLOATS),
            _array(call, 4, (directions, columns * rows), like),
            saved,
            _array(call, 3, mask, _FLOATS),
            _array(call, 1, y, _FLOATS),
            d_bias,
            d_weights,
            d_x,
        )
        for d in range(directions):
            kernel = _allocate(call, 1 + d, (features, GATES * units), _FLOATS)
            recurrent = _allocate(call, 1 + directions + d, (units, GATES * units), _FLOATS)
            bias = _allocate(call, 1 + 2 * directions + d, (GATES * units,), _FLOATS)
            if not _code(call.status):
                unpack_gradients(d_weights[d], d_bias[d], kernel, recurrent, bias)


@inner
def _compute(op, like):
    inputs, status = _num_inputs(op), _new_status()
    tensors = np.zeros(inputs + _num_outputs(op), np.uintp)
    for number in range(inputs):
        _get_input(op, number, tensors[number:].ctypes.data, status)
    call = _Call(op, status, tensors, inputs)
    meta = _array(call, 0, (WITH_X + 1,), _INTS)
    plan = Plan((np.int64(meta[STEPS]), np.int64(meta[BACKWARD_STEPS])), meta[RETURNS], meta[SAVE] != 0)
    directions, units = np.int64(meta[DIRECTIONS]), np.int64(meta[UNITS])
    tile_state = configure_tiles() if on_tiles(like) else np.zeros(0, np.uint8)
    try:
        if meta[OPERATION] == PACK:
            _pack(call, directions, units, plan, like)
        elif meta[OPERATION] == FORWARD:
            _forward(call, directions, units, plan, like)
        else:
            _backward(call, directions, units, plan, meta[WITH_X] != 0, like)
    except Exception:
        _set_status(call.status, _RESOURCE_EXHAUSTED, _NO_MEMORY.ctypes.data)
    if len(tile_state) > 0:
        load_configuration(pointer(tile_state, (0,)))
        tile_state[0] = 0  # pointers do not keep arrays alive
    if _code(call.status):
        _fail(call.op, call.status)
    for tensor in call.tensors:
        if tensor != 0:
            _delete_tensor(tensor)
    _delete_status(call.status)


# TensorFlow calls them with the kernel's state, which is null, and the operation's context.


def _compute_float32(_, op):
    _compute(op, np.zeros(0, np.float32))


def _compute_bfloat16(_, op):
    _compute(op, np.zeros(0, np.uint16))


@cache
def compile_body(dtype: tf.DType) -> Callable:
    """The operations' body for one type of operands; TensorFlow calls it as long as the process lives."""
    body = _compute_float32 if dtype == tf.float32 else _compute_bfloat16
    return compile_and_announce(dtype.name, body, types.void(_address, _address))
