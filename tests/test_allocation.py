"""What a program frees stays with the process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from snake_jax import allocation

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")

ROOT = Path(__file__).parents[1]
PAGES = 64 * 2**20 // 4096
# Page faults of ten buffers of 64 MiB, one after the other, in a thread, as steps have them.
PROGRAM = """
import resource, threading
from snake_jax import allocation

def fill(times):
    for _ in range(times):
        bytes(b"x") * (64 * 2**20)

def in_thread(times):
    thread = threading.Thread(target=fill, args=(times,))
    thread.start()
    thread.join()

kept = allocation.keep_freed()
in_thread(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
in_thread(10)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def kept_and_faults(**environment: str) -> tuple[bool, int]:
    """Whether the allocator was told, and how many pages were asked for."""
    clean = {name: value for name, value in os.environ.items() if name not in allocation.BY_USER}
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    kept, faults = printed.split()
    return kept == "True", int(faults)


def test_a_buffer_takes_the_pages_of_the_one_before():
    kept, faults = kept_and_faults()
    assert kept
    assert faults < PAGES


def test_what_the_user_set_up_stays():
    kept, faults = kept_and_faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept
    assert faults > 9 * PAGES
