"""What the machine offers: cores, and the precision its processor multiplies natively."""

import hashlib
import os
import platform


def available_cores() -> list[int]:
    """The numbers of the processor's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processor_kind() -> str:
    """The kind of this machine's processor; on one kind, the same code computes the same bytes.

    The maker, the numbers of family and model, and a digest of the vector instructions.
    """
    digest = hashlib.sha256(" ".join(vector_extensions()).encode()).hexdigest()[:6]
    return " ".join([*(_cpuinfo(name) or "?" for name in ("vendor_id", "cpu family", "model")), digest])


def processor() -> str:
    """The processor's name as the system tells it, and the number of cores that this process may use."""
    cores = len(available_cores())
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"


def _cpuinfo(name):
    """The first value of that name in `/proc/cpuinfo`; empty where there is none."""
    try:
        with open("/proc/cpuinfo") as file:
            fields = (line.partition(":") for line in file)
            return next((value.strip() for field, _, value in fields if field.strip() == name), "")
    except OSError:
        return ""


def best_precision() -> str:
    """`"bfloat16"` where the processor multiplies bfloat16 matrices natively, else `"float32"`.

    Where the processor is unknown (not Linux), the answer is `"float32"`.
    """
    return "bfloat16" if {"amx_bf16", "avx512_bf16"} & set(vector_extensions()) else "float32"


def vector_extensions() -> list[str]:
    """The names of the processor's vector instructions in `/proc/cpuinfo`; empty where there is none."""
    flags = _cpuinfo("flags").split()
    return sorted(flag for flag in flags if flag.startswith(("amx", "avx", "fma", "sse", "f16c")))
