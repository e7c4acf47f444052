"""What the machine offers: cores, and the precision its processor multiplies natively."""

import os
import platform


def available_cores() -> list[int]:
    """The numbers of the processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor() -> str:
    """The processor's name as the system tells it, and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            name = next(names, name)
    except OSError:
        pass
    cores = len(available_cores())
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"


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
