"""The C library's allocator. No torch here: the processes that look at a data set use it too."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h


def keep_freed_memory(pad: int = 64 << 20) -> bool:
    """Whether glibc was told to serve large blocks from its heap, which grows by ``pad`` bytes, and to keep them."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(key, value) for key, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, pad)))
