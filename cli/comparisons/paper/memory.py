"""The memory that a run takes beside what its process held before. Linux alone counts anew for each run."""

import ctypes
import gc
import time
from pathlib import Path

OWN = Path("/proc/self")


def held(name="VmRSS", process=OWN):
    """GB now, or with VmHWM the most since the last begin()."""
    line = next(line for line in (process / "status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e9


def begin():
    """Gives back what is free, begins to count, and gives what the process holds; None where nothing can be said."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (OWN / "clear_refs").write_text("5")
        return held()
    except (AttributeError, OSError):
        return None


def taken(before):
    """GB at most since begin(), which gave `before`."""
    return None if before is None else held("VmHWM") - before


def of_all(process):
    """GB at most in a process of another program, asked until it ends: what the system says at the end counts what this
    process held when it started the other. None where nothing can be said."""
    most = None
    while process.poll() is None:
        try:
            most = held("VmHWM", Path(f"/proc/{process.pid}"))
        except (OSError, StopIteration):
            pass
        time.sleep(0.05)
    return most
