"""The speed and memory of this machine, measured once per process in about 0.2 seconds."""

from __future__ import annotations

import os
import resource
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

# The share of the matrix-product rate that a whole model reaches on CPU, measured with the built-in model.
INFERENCE_SHARE = 0.6
TRAINING_SHARE = 0.45
AMX_GAIN = 1.35  # speedup of training in bfloat16 on processors with AMX: 1.27 to 1.47 by method


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores that this process may use, memory in bytes, fp32 matrix-product rate in operations per second, and AMX."""

    cores: int
    memory_bytes: int
    flops: float
    amx: bool = False

    def inference_seconds(self, flops: float) -> float:
        """Estimated time of a forward pass of this many operations."""
        return flops / (self.flops * INFERENCE_SHARE)

    def training_seconds(self, flops: float, *, float32: bool = False) -> float:
        """Estimated time of training steps of this many operations, in float32 or in the fastest precision."""
        return flops / (self.flops * TRAINING_SHARE * (AMX_GAIN if self.amx and not float32 else 1.0))


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """Measure this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processor = Path("/proc/cpuinfo")
    amx = processor.exists() and "amx_bf16" in processor.read_text("utf-8")
    return Machine(cores, memory_bytes(), _matmul_rate(), amx)


def memory_bytes() -> int:
    """The memory that this process may use: the machine's, or the container's limit if that is smaller."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total


def free_memory_bytes() -> int:
    """The memory that this process may still take, by its own limit and by what other processes leave free."""
    status, machine = Path("/proc/self/statm"), Path("/proc/meminfo")
    if not status.exists() or not machine.exists():  # not Linux: what other processes take is unknown
        return memory_bytes()
    left = memory_bytes() - int(status.read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":", 1) for line in machine.read_text("utf-8").splitlines())
    return max(0, min(left, 1024 * int(fields["MemAvailable"].split()[0])))


def peak_memory_bytes() -> int:
    """The most resident memory that this process has taken so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _matmul_rate(size: int = 768, seconds: float = 0.15) -> float:
    a = np.ones((size, size), np.float32)
    a @ a
    rounds, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        a @ a
        rounds += 1
    return 2 * size**3 * rounds / spent
