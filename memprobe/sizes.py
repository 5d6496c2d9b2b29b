"""Sizes of memory as a user writes them."""

from __future__ import annotations

import re

from memprobe.errors import MemprobeError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)?", re.IGNORECASE)
_SCALE = {"B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_size(text: str) -> int:
    """Bytes of ``40GiB`` or ``500MB``.

    Raises:
        MemprobeError: it is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise MemprobeError(f"memory {text}: give a size such as 40GiB")
    unit = (match[2] or "B").upper()
    scale = 1024 ** "BKMGT".index(unit[0]) if "I" in unit else _SCALE[unit[0]]
    return int(float(match[1]) * scale)
