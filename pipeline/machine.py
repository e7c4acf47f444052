"""What the machine offers: cores, and the precision its processor multiplies natively."""

import os
from pathlib import Path

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container


def available_cores() -> list[int]:
    """The numbers of the processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def number_of_cpus() -> int:
    """How many processes can compute at once: the cores, or less in a container with a limit."""
    try:
        quota, period = map(int, CPU_LIMIT.read_text().split())  # the quota is "max" where there is none
        limit = max(1, round(quota / period))
    except (OSError, ValueError, ZeroDivisionError):
        limit = len(available_cores())
    return min(limit, len(available_cores()))


def best_precision() -> str:
    """`"bfloat16"` where the processor multiplies bfloat16 matrices natively, else `"float32"`.

    Where the processor is unknown (not Linux), the answer is `"float32"`.
    """
    return "bfloat16" if {"amx_bf16", "avx512_bf16"} & set(vector_extensions()) else "float32"


def vector_extensions() -> list[str]:
    """The names of the processor's vector instructions in `/proc/cpuinfo`; empty where there is none."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return []
    return sorted(flag for flag in flags if flag.startswith(("amx", "avx", "fma", "sse", "f16c")))
