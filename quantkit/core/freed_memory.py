"""Memory that is freed and soon wanted again stays with the process, by two settings of glibc's allocator.

By default glibc gives large blocks back to the system as they are freed, and each new activation is paged in anew: on a virtual machine
that is a third of the time that sensitivity and calibration take.
"""

from __future__ import annotations

import ctypes
import os
import platform

# By glibc's names of them (mallopt(3)), their numbers and values: blocks under 32 MiB, glibc's own limit, come from the heap, and a
# gibibyte at its end is kept.
SETTINGS = {"MALLOC_MMAP_THRESHOLD_": (-3, 32 << 20), "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30)}


def keep_freed_memory() -> None:
    """Make the settings in this process, but for those that the environment has made; nothing where the allocator is not glibc's."""
    if platform.libc_ver()[0] == "glibc":
        for name, setting in SETTINGS.items():
            if name not in os.environ:
                ctypes.CDLL(None).mallopt(*setting)
