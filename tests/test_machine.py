"""What this machine gives us, asked in a process of its own."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, threading, torch
from workers.machine import cores, keep_freed_memory
assert cores() >= 1 and keep_freed_memory()


def fill():
    for _ in range(20):
        torch.empty(2**24).fill_(1.0)


def faults_of_a_thread():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults_of_a_thread()
print(faults_of_a_thread())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that can")
def test_memory_that_was_freed_is_taken_again_without_page_faults() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    # 64 MB anew are 16,384 pages, twenty times; the heap may still grow a few times.
    assert int(done.stdout) < 20 * 2**14 // 2
