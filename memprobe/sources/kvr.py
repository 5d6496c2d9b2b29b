"""Key-Value Recall: facts that no model can know, such as ``The value of key 3kd8s0qa is?`` -> ``p0x7w1mz``."""

from __future__ import annotations

import hashlib

from memprobe.errors import MemprobeError
from memprobe.factoids import Factoid, make_factoid

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
LENGTH = 8
SPLITS = ("train", "validation", "test")
PROMPT = "The value of key {key} is?"

_HALF = len(ALPHABET) ** (LENGTH // 2)
_BLOCK = 1_000_000  # rows of one (seed, split)
MAX_SEED = _HALF**2 // (_BLOCK * len(SPLITS)) - 1


def check_kvr(n: int, split: str) -> None:
    """Raises a MemprobeError for a number of pairs or a split that there is none of."""
    if not 1 <= n <= _BLOCK:
        raise MemprobeError(f"kvr:{n}: give 1 to {_BLOCK} pairs")
    if split not in SPLITS:
        raise MemprobeError(f"kvr: no split {split!r}; the splits are {', '.join(SPLITS)}")


def generate_kvr(n: int, *, seed: int = 0, split: str = "train") -> list[Factoid]:
    """The first ``n`` key-value pairs of a seed and split, of 8 lowercase letters and digits each.

    No key and no value occurs twice, and two (seed, split) never share one: row i of a split is number
    ``(seed * splits + split) * 10^6 + i``, and a fixed permutation of all 36^8 strings turns numbers into
    keys, another into values. A longer set begins with the shorter.

    Raises:
        MemprobeError: n, seed or split out of range.
    """
    check_kvr(n, split)
    if not 0 <= seed <= MAX_SEED:
        raise MemprobeError(f"kvr: the seed {seed} is not between 0 and {MAX_SEED}")
    start = (seed * len(SPLITS) + SPLITS.index(split)) * _BLOCK
    return [_pair(start + row) for row in range(n)]


def _pair(number: int) -> Factoid:
    key = _string(_permuted(number, b"key"))
    value = _string(_permuted(number, b"value"))
    return make_factoid(PROMPT.format(key=key), value, "kvr", relation="kvr", subject=key)


def _permuted(number: int, purpose: bytes) -> int:
    """A four-round Feistel network over two halves of 36^4: a bijection of 0 … 36^8 - 1."""
    left, right = divmod(number, _HALF)
    for round_ in range(4):
        digest = hashlib.sha256(b"memprobe kvr %s %d %d" % (purpose, round_, right)).digest()
        left, right = right, (left + int.from_bytes(digest[:8], "big")) % _HALF
    return left * _HALF + right


def _string(number: int) -> str:
    digits = []
    for _ in range(LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(digits)
