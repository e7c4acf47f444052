"""What the compiled code is made with: Numba, its results kept on disk, and bfloat16, which it does not have.

Used by `products.py`, `lstm_step.py` and `kernels.py`.
"""

import hashlib
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic, overload

# The files whose functions are compiled.
COMPILED = ("compiled", "products", "lstm_step", "kernels")


def _folder():
    """Where Numba keeps what it compiles: a folder named by the content of the files with compiled code.

    Numba itself asks only whether the file of a function has changed, but what it compiles to holds the other
    files' code; and processes that start after a change must not meet in a folder of old code.
    """
    here = Path(__file__)
    content = b"".join(here.with_name(f"{name}.py").read_bytes() for name in COMPILED)
    name = f"numba_{hashlib.sha256(content).hexdigest()[:8]}"
    for base in (numba.config.CACHE_DIR, here.with_name("__pycache__"), Path.home() / ".cache/numba"):
        if base:
            try:
                Path(base, name).mkdir(parents=True, exist_ok=True)
                return str(Path(base, name))
            except OSError:
                continue
    return numba.config.CACHE_DIR


_FOLDER = _folder()


def kept(decorator):
    """A decorator of Numba, its results kept in that folder."""
    def decorate(function):
        # Numba looks at the setting when it decorates; it is everybody's, and so put back.
        others, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _FOLDER
        try:
            return decorator(function)
        finally:
            numba.config.CACHE_DIR = others
    return decorate


compiled = kept(numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"}))
inlined = numba.njit(inline="always")


def _bitcast(to):
    @intrinsic
    def cast(typing_context, value):
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(to))
        return to(value), generate
    return cast


float_of_bits, bits_of_float = _bitcast(types.float32), _bitcast(types.uint32)


def host_has(feature):
    """Whether the processor that Numba compiles for has a feature, by LLVM's name of it."""
    return f"+{feature}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


def load(value):
    """As float32. Numba has no bfloat16: such arrays come as their bits, uint16."""


@overload(load, inline="always")
def _load_any(value):
    if value == types.uint16:
        return lambda value: float_of_bits(np.uint32(np.uint32(value) << np.uint32(16)))
    return lambda value: value


def store(array, k, value):
    """A float32, in the array's type; to bfloat16 rounded to nearest, ties to even."""


@overload(store, inline="always")
def _store_any(array, k, value):
    if array.dtype == types.uint16:
        def store(array, k, value):
            bits = bits_of_float(value)
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            array[k] = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    else:
        def store(array, k, value):
            array[k] = value
    return store


# Rows that lie apart, as those of two samples in the same step do, are not what the processor's own
# prefetching looks for; asked for so many rows before they are needed, they come twice as fast.
AHEAD = 2
_CACHE_LINE = 64  # bytes


@intrinsic
def prefetch(typing_context, row):
    """Start to fetch all of a contiguous one-dimensional array into the nearest cache."""
    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, number, number, number]))
        start, size = builder.bitcast(array.data, byte), builder.mul(array.nitems, array.itemsize)
        with cgutils.for_range_slice(builder, size.type(0), size, size.type(_CACHE_LINE)) as (offset, _):
            # To read, into all levels, data rather than instructions.
            builder.call(prefetch, [builder.gep(start, [offset]), number(0), number(3), number(1)])
        return context.get_dummy_value()
    return types.void(row), generate
