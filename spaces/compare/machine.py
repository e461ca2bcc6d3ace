"""What this machine has to give: memory and cores of the container, which in a Space are less than the host's, and
memory of GPUs."""

import math
import os
import re
import subprocess
from pathlib import Path

import psutil

ON_ZERO_GPU = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
"""Whether GPUs are lent to this Space for single calls (ZeroGPU), as its environment says."""

_CGROUP = Path("/sys/fs/cgroup")
_UNITS = {"Gi": 2**30, "Mi": 2**20, "G": 10**9, "M": 10**6}


def memory_for_models() -> int:
    """Bytes that models loaded now may take: of the GPUs where there are any, else of this container."""
    return free_gpu_memory() or available_memory()


def available_memory() -> int:
    """Bytes that new processes may take: what the host has free, or what is left of the container's own limit."""
    limits = [limit for limit in (_cgroup_memory(), _space_memory()) if limit is not None]
    return min([psutil.virtual_memory().available, *(limit - _used_here() for limit in limits)])


def free_gpu_memory() -> int | None:
    """Bytes free on all GPUs together; None where there are none, or none that tells."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return sum(int(line) for line in said.split() if line.isdigit()) * 2**20 or None


def cores() -> int:
    """Cores that this container may use."""
    host = os.cpu_count() or 1
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        return max(1, min(host, math.ceil(int(quota[0]) / int(quota[1]))))
    return host


def resident_memory(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(psutil.Process(pid).memory_info().rss)


def _used_here() -> int:
    this = psutil.Process()
    return sum(process.memory_info().rss for process in [this, *this.children(recursive=True)])


def _cgroup_memory() -> int | None:
    limit = _read(_CGROUP / "memory.max")
    return int(limit) if limit.isdigit() else None


def _space_memory() -> int | None:
    """Spaces say their limit in a variable, such as MEMORY=16Gi."""
    said = re.fullmatch(r"(\d+)(Gi|Mi|G|M)", os.environ.get("MEMORY", ""))
    return int(said[1]) * _UNITS[said[2]] if said else None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
