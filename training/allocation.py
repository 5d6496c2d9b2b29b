"""Memory that a training step frees stays with the process, for the next step to take.

glibc's ``malloc`` takes large blocks from the kernel one by one and gives each back when it is freed (``mallopt(3)``:
``M_MMAP_THRESHOLD``, at most 32 MiB by itself). A step frees and takes again what is as large as the weights, in
bfloat16 several times over: casts of weights and of their gradients. Each of its pages is cleared by the kernel anew
when it is first touched, which can take longer than the products that the step is made of.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees. Its peak stays about what it was, and it stays at its peak.

    For processes that train on a CPU and do little else; what is computed stays the same.

    Returns:
        Whether that can be told here: only glibc has such settings.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # others have a mallopt that does nothing, or other settings
        tell = libc.mallopt
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    return bool(tell(_MMAP_MAX, 0)) and bool(tell(_TRIM_THRESHOLD, -1))
