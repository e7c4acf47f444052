"""What the machine offers: cores, and the precision its processor multiplies natively."""

import os


def available_cores() -> list[int]:
    """The numbers of the processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def best_precision() -> str:
    """`"bfloat16"` where the processor multiplies bfloat16 matrices natively, else `"float32"`.

    Reads `/proc/cpuinfo`; where there is none (not Linux), the answer is `"float32"`.
    """
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return "float32"
    return "bfloat16" if {"amx_bf16", "avx512_bf16"} & set(flags) else "float32"
