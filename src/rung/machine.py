"""What this machine and its operating system have: speed, memory, file locks, owners of files, groups of processes.

What only Linux and macOS have is asked for here alone, so that Windows needs no other code elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

try:
    import fcntl
    import resource
except ModuleNotFoundError:  # Windows
    HAS_POSIX = False
else:
    HAS_POSIX = True

# The share of the matrix-product rate that a whole model reaches on CPU, measured with the built-in model.
INFERENCE_SHARE = 0.6
TRAINING_SHARE = 0.45
UNKNOWN_MEMORY = 8 * 2**30  # assumed where the system does not say
LOCKED_BYTE = 2**40  # Windows keeps others from reading what is locked, so it is a byte that no file has
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
    processor = Path("/proc/cpuinfo")
    amx = processor.exists() and "amx_bf16" in processor.read_text("utf-8")
    return Machine(len(own_cores()), memory_bytes(), _matmul_rate(), amx)


def own_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def memory_bytes() -> int:
    """The memory that this process may use: the machine's, or the container's limit if that is smaller."""
    total = _physical_bytes()
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
    """The most resident memory that this process has taken so far; 0 where the system does not say."""
    return _peak(resource.RUSAGE_SELF) if HAS_POSIX else 0


def peak_memory_of_children() -> int:
    """The same of the largest process that this one has started and that has ended."""
    return _peak(resource.RUSAGE_CHILDREN) if HAS_POSIX else 0


def limit_memory(most: int) -> None:
    """Let this process have no more than so many bytes of addresses, and write no core file.

    Windows has no such limit, and macOS refuses it; there only the limits of time and output hold.
    """
    if HAS_POSIX:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def files_allowed(wanted: int) -> int:
    """How many of `wanted` files this process may have open; its own limit is raised where the system allows that."""
    if not HAS_POSIX:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)


def lock_file(handle: int, *, wait: bool = True) -> None:
    """Lock an open file against other processes until it is closed.

    Raises:
        BlockingIOError: another process holds it, and `wait` is off.
    """
    if HAS_POSIX:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    place = os.lseek(handle, 0, os.SEEK_CUR)
    while True:
        os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError as busy:
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "another process holds it") from busy
            time.sleep(0.05)
        else:
            return
        finally:
            os.lseek(handle, place, os.SEEK_SET)


def only_ours(status: os.stat_result) -> bool:
    """Whether no other user may write a file, by its status: it belongs to this user or the administrator.

    Windows keeps such rights elsewhere, and a user's own folders are closed to others there.
    """
    if not hasattr(os, "geteuid"):
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was started in a session of its own, and all that it started; on Windows itself alone."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _physical_bytes() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # MEMORYSTATUSEX of the Windows API: 64 bytes, of which the first four are its size and 8 to 16 the whole memory.
    status = (ctypes.c_uint64 * 8)(64)
    windows = getattr(ctypes, "windll", None)
    known = windows is not None and windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status[1]) if known else UNKNOWN_MEMORY


def _matmul_rate(size: int = 768, seconds: float = 0.15) -> float:
    import numpy as np

    a = np.ones((size, size), np.float32)
    a @ a
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        a @ a
        best = min(best, time.perf_counter() - start)  # another process may run for a moment
    return 2 * size**3 / best
