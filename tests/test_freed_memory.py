"""Memory that is freed stays with the process: its pages come once, not with each new activation. Workers wait awake for a moment."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from quantkit.core.freed_memory import SETTINGS

FAULTS = """
import resource, sys
from quantkit.core.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import torch
x = torch.zeros(4 << 20)  # 16 MiB

def rounds(count):
    for _ in range(count):
        blocks = [x + 1 for _ in range(4)]
        del blocks

rounds(10)  # the first touch of each page is a fault in any case, and how many there are depends on the size of pages
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(40)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **variables: str) -> int:
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run([sys.executable, "-c", FAULTS, how], env={**clean, **variables}, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_blocks_that_are_freed_are_not_paged_in_again() -> None:
    assert faults("leave") > 3 * faults("keep")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_what_the_environment_says_of_it_stands() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="65536", MALLOC_MMAP_THRESHOLD_="65536") > 3 * faults("keep")


@pytest.mark.parametrize(("own", "policy", "turns"), [({}, "PASSIVE", "3000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", "None")])
def test_workers_of_openmp_wait_awake_for_a_moment_unless_the_environment_says_how(own: dict[str, str], policy: str, turns: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = "import os, quantkit.cli; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **own}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [policy, turns]
