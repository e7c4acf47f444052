"""Cores and processor of this machine."""

import functools
import hashlib
import os
import platform
from pathlib import Path


def available_cores() -> list[int]:
    """The numbers of the processor's cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


@functools.cache
def cpu_info() -> dict[str, str]:
    """The fields of the first core in `/proc/cpuinfo`."""
    first_core = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    fields = (line.partition(":") for line in first_core.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def processor() -> str:
    """The processor's name, and the number of cores that this process may use."""
    cores = len(available_cores())
    name = cpu_info().get("model name") or platform.machine()
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"


def processor_kind() -> str:
    """Vendor, family, model, and a digest of the vector instructions: they decide the bytes of a result."""
    digest = hashlib.sha256(" ".join(vector_extensions()).encode()).hexdigest()[:6]
    return " ".join([*(cpu_info().get(key, "?") for key in ("vendor_id", "cpu family", "model")), digest])


def vector_extensions() -> list[str]:
    """The names of the processor's vector instructions, sorted; empty where they are unknown."""
    prefixes = ("amx", "avx", "fma", "sse", "f16c")
    return sorted(flag for flag in cpu_info().get("flags", "").split() if flag.startswith(prefixes))


def best_precision() -> str:
    """`"bfloat16"` where training is faster with it, else `"float32"`.

    It is with AMX, and with AVX-512 bfloat16 on AMD; on Intel without AMX, float32 is 1.2 times as fast.
    """
    extensions = vector_extensions()
    amd = cpu_info().get("vendor_id") == "AuthenticAMD"
    return "bfloat16" if "amx_bf16" in extensions or (amd and "avx512_bf16" in extensions) else "float32"
