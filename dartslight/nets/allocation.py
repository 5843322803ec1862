"""How freed memory is kept for the next step on a CPU."""

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of settings in malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20  # larger values are refused


@functools.cache
def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory instead of giving it back to the system at once.

    A network takes the same blocks of some megabytes again and again; getting each from the system anew, page by page,
    can take longer than the arithmetic on it. Settings given by the environment variables of malloc are overwritten.

    Returns:
        Whether it was possible; elsewhere than with the GNU C library nothing happens.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
