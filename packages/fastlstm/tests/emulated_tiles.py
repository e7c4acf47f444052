"""AMX's tile instructions in NumPy, a pytest plugin: processors with AVX512-BF16 run the code for AMX.

It has to be imported before fastlstm, with `TF_NUM_INTEROP_THREADS=1`, because all threads share the tiles.
"""

import ctypes
import importlib.util
import sys
from pathlib import Path

import llvmlite.binding
import numpy as np
from llvmlite import ir

TILES, CONFIGURATION = np.zeros((8, 16, 16), np.float32), np.zeros(64, np.uint8)
BYTE, ADDRESS, LONG = ctypes.c_uint8, ctypes.c_void_p, ctypes.c_int64


def rows_at(address, stride):
    size = 16 * stride + 64
    memory = np.frombuffer((BYTE * size).from_address(address), np.float32)
    return np.lib.stride_tricks.as_strided(memory, (16, 16), (stride, 4))


def load(tile, address, stride):
    TILES[tile] = rows_at(address, stride)


def store(tile, address, stride):
    rows_at(address, stride)[:] = TILES[tile]


def multiply(total, left, right):
    """Sum the products of the first values of pairs, those of the second values, and then both sums."""
    left, right = (
        (TILES[tile].view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(16, 16, 2)
        for tile in (left, right)
    )
    sums = np.zeros((16, 16, 2), np.float32)
    for k in range(16):
        sums += left[:, k, None] * right[None, k]
    TILES[total] += sums.sum(axis=-1)


def load_configuration(address):
    ctypes.memmove(CONFIGURATION.ctypes.data, address, 64)


def store_configuration(address):
    ctypes.memmove(address, CONFIGURATION.ctypes.data, 64)


INSTRUCTIONS = {
    "tileloadd64": ctypes.CFUNCTYPE(None, BYTE, ADDRESS, LONG)(load),
    "tilestored64": ctypes.CFUNCTYPE(None, BYTE, ADDRESS, LONG)(store),
    "tdpbf16ps": ctypes.CFUNCTYPE(None, BYTE, BYTE, BYTE)(multiply),
    "ldtilecfg": ctypes.CFUNCTYPE(None, ADDRESS)(load_configuration),
    "sttilecfg": ctypes.CFUNCTYPE(None, ADDRESS)(store_configuration),
}
for name, function in INSTRUCTIONS.items():
    llvmlite.binding.add_symbol(f"emulated_{name}", ctypes.cast(function, ADDRESS).value)


def call(builder, name, *arguments):
    kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    name = f"emulated_{name}"
    builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), arguments)


def import_isa():
    folder = Path(importlib.util.find_spec("fastlstm").origin).parent
    spec = importlib.util.spec_from_file_location("fastlstm.isa", folder / "isa.py")
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules[spec.name]


import_isa().ISA = "amx"
importlib.import_module("fastlstm.tiles").call = call
