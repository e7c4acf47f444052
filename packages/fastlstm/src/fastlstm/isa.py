"""The instruction set that the package is compiled for: `ISA`, decided at import.

The environment variable `FASTLSTM_ISA` names another one that the processor has, for tests and comparisons.
"""

import ctypes
import logging
import os
import platform

import llvmlite.binding
import numba

# Best first. Each has the features of those after it, by LLVM's names.
_FEATURES = {
    "amx": {"amx-tile", "amx-bf16", "avx512bf16"},  # tiles of 16 by 16, bfloat16
    "avx512_bf16": {"avx512bf16"},  # bfloat16 pairs in vectors
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma"},
    "generic": set(),
}
# Linux, arch/x86: asm/prctl.h, asm/fpu/types.h, syscall_64.tbl.
_SYS_ARCH_PRCTL = 158
_ARCH_GET_XCOMP_PERM, _ARCH_REQ_XCOMP_PERM = 0x1022, 0x1023
_XFEATURE_XTILEDATA = 18

_log = logging.getLogger(__name__)


def request_tiles() -> bool:
    """Ask Linux for the use of AMX's tiles in this process.

    The kernel's answer is read back: a sandbox may accept the request and do nothing.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    granted = ctypes.c_uint64()
    refused = syscall(
        ctypes.c_long(_SYS_ARCH_PRCTL),
        ctypes.c_long(_ARCH_REQ_XCOMP_PERM),
        ctypes.c_long(_XFEATURE_XTILEDATA),
    ) or syscall(ctypes.c_long(_SYS_ARCH_PRCTL), ctypes.c_long(_ARCH_GET_XCOMP_PERM), ctypes.byref(granted))
    return not refused and bool(granted.value >> _XFEATURE_XTILEDATA & 1)


def available() -> list[str]:
    """The instruction sets that may be used in this process, best first.

    Logs a line if the processor has AMX but the operating system refuses it.
    """
    named = numba.config.CPU_FEATURES
    if named is None:
        features = {name for name, on in llvmlite.binding.get_host_cpu_features().items() if on}
    else:
        features = {name[1:] for name in named.split(",") if name.startswith("+")}
    found = [isa for isa, needed in _FEATURES.items() if needed <= features]
    if "amx" in found and not request_tiles():
        found.remove("amx")
        _log.warning(
            "the operating system does not let this process use the processor's AMX tiles; "
            "fastlstm uses %s instead",
            found[0],
        )
    return found


def _chosen() -> str:
    """The best instruction set, or that of `FASTLSTM_ISA`.

    Raises:
        ValueError: `FASTLSTM_ISA` is none that this process may use.
    """
    isas = available()
    isa = os.environ.get("FASTLSTM_ISA") or isas[0]
    if isa not in isas:
        raise ValueError(f"FASTLSTM_ISA must be one of {isas} on this machine, not {isa!r}")
    return isa


def _withhold(unwanted: set[str]) -> None:
    """Let Numba compile, in this process, for a processor without these features."""
    features = llvmlite.binding.get_host_cpu_features()
    numba.config.CPU_NAME = llvmlite.binding.get_host_cpu_name()
    numba.config.CPU_FEATURES = ",".join(
        f"{'+' if on and not name.startswith(tuple(unwanted)) else '-'}{name}"
        for name, on in sorted(features.items())
    )


def uses(isa: str) -> bool:
    """Whether `ISA` is the given one or better."""
    return _RANKS[ISA] <= _RANKS[isa]


_RANKS = {isa: rank for rank, isa in enumerate(_FEATURES)}
ISA = _chosen()
if not uses("avx512"):
    _withhold(
        {"avx512", "avx10", "amx"} if uses("avx2") else {"avx", "amx", "fma", "f16c", "vaes", "vpclmul"}
    )
