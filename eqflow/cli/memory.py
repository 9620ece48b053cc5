"""Freed memory is kept for the next tensor, which glibc would hand back to the system.

A tensor of some megabytes is mapped anew each time it is made, and the system clears it page by
page: on a CPU that can cost more than filling it. Said only where eqflow is the whole process; a
library has no business with its host's allocator. Nothing happens where the C library is another.
"""

from __future__ import annotations

import ctypes
import os
import platform

# Of glibc's malloc.h, and the largest value it takes for the second.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_THRESHOLD = 32 * 1024**2
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to reuse memory rather than return it; whether it agreed.

    Left alone where the environment sets glibc's thresholds itself.
    """
    chosen = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & set(os.environ)
    if platform.libc_ver()[0] != "glibc" or chosen:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wishes = ((M_MMAP_THRESHOLD, LARGEST_THRESHOLD), (M_TRIM_THRESHOLD, NEVER))
    return all(mallopt(option, value) == 1 for option, value in wishes)
