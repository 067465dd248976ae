"""Processes of the system, told from later ones that have the same number."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process; `started` tells it from a later one of the same pid."""

    pid: int
    started: str


def started(pid: int) -> str:
    """When a process was started, as the system counts it; empty: there is none, or it ended."""
    if sys.platform != "linux":
        command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        state, _, since = said.partition(" ")
        return "" if state.startswith("Z") else since.strip()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name before may hold spaces and brackets; the state comes next, and the start, field
        # 22 of proc_pid_stat(5), in ticks since boot.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def is_alive(process: Process) -> bool:
    """Whether it runs: one that has ended and waits to be asked for its exit code does not."""
    return bool(process.pid and process.started) and started(process.pid) == process.started
