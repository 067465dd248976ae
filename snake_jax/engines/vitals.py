"""What a process can say of itself and its machine, without a library."""

import os
import sys

_STATM = "/proc/self/statm"


def load() -> float:
    """Runnable processes for each core of the machine, the mean of a minute; 0: not known here."""
    if sys.platform == "win32":
        return 0.0
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def memory_bytes() -> int:
    """What this process holds in memory; 0: not known here."""
    if sys.platform == "win32":
        return 0
    # Linux says what is held now; elsewhere the most that was held has to do.
    try:
        with open(_STATM, encoding="ascii") as file:
            pages = int(file.read().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
