"""What a program frees stays with the process, for its next call.

A step on a CPU takes its buffers from the C library and gives them back when it ends. By default
glibc hands the large ones to the kernel each time, and the next step takes a page fault, and a page
of zeros, for every 4 KiB of them: of a small language model's step that was a quarter of the time.
"""

import ctypes
import os
import sys

_SETTINGS = {
    # A thread's own arena is made of parts of 64 MiB, which a large buffer does not fit into.
    "M_ARENA_MAX": (-8, 1),
    # No buffer gets a mapping of its own, whose pages go with it.
    "M_MMAP_MAX": (-4, 0),
    # The end of the heap is given back from two gigabytes on, which is all but never.
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
}
"""Parameters of mallopt(3), by their number in malloc.h, and what they are set to."""

BY_USER = (
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
)
"""Of the environment: whoever sets one of these has decided it himself."""


def keep_freed() -> bool:
    """Has the C library keep what is freed, from now on; returns whether it does.

    Nothing is done where the user has set up the allocator in the environment, nor where the C
    library is not glibc. The peak of a process stays as it was; what it frees the system sees no
    more before it ends.
    """
    if sys.platform != "linux" or any(name in os.environ for name in BY_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(number, value) == 1 for number, value in _SETTINGS.values())
