"""Damage: to bytes, to lines of text, to what JSON says, to tables."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

import polars as pl

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 3, 10**9, 10**30, -(2**63), 2**31, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "x", "1", "nan", "\x00", "\x1b]0;t\x07", "../../x", "/dev/zero", "/dev/null", "a" * 300, "é" * 200,
    "\u202e", "[/]", "=1+1", "{prompt}", "{{ 1/0 }}", [], {}, [[]], [None], {"": None}, {"schema": 1}, [1, "a", {}],
    "config.json", "owner/name", "-",
]  # fmt: skip


def junk(random: Random) -> Any:
    """One of :data:`JUNK`, and never the same object twice: what is changed in one input would be in the next."""
    return copy.deepcopy(random.choice(JUNK))


def deep(depth: int) -> Any:
    """Lists in lists; JSON of some thousand cannot be read recursively."""
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def bytes_of(data: bytes, random: Random) -> bytes:
    """A few bytes changed, cut, doubled or put in."""
    damaged = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        size = len(damaged)
        at = random.randrange(size) if size else 0
        how = random.randrange(8)
        if how < 3 and size:
            damaged[at] ^= 1 << random.randrange(8)
        elif how == 3:
            del damaged[at:]
        elif how == 4:
            del damaged[at : at + random.randrange(1, 40)]
        elif how == 5:
            damaged[at:at] = random.randbytes(random.randrange(1, 20))
        elif how == 6:
            damaged[at:at] = damaged[at : at + random.randrange(1, 200)]
        else:
            end = min(size, at + random.randrange(1, 64))
            damaged[at:end] = bytes(end - at)
    return bytes(damaged)


def text_of(text: str, random: Random) -> bytes:
    """Lines or characters changed; now and then another encoding, or no text at all."""
    how = random.randrange(10)
    if how == 0:
        return bytes_of(text.encode(), random)
    if how == 1:
        return text.encode(random.choice(["utf-16", "utf-16-le", "cp1252", "utf-8-sig"]), "replace")
    lines = text.split("\n")
    at = random.randrange(len(lines))
    if how == 2:
        lines[at] = random.choice(
            ["", "\x00", "x", "[" * 3000, "," * 9, '"', "'", "=", "null", "[[stages]]", "\ufeff"]
        )
    elif how == 3:
        del lines[at]
    elif how == 4:
        lines.insert(at, random.choice(lines))
    elif how == 5:
        random.shuffle(lines)
    elif how == 6:
        return "\n".join(lines)[: random.randrange(len(text) + 1)].encode()
    else:
        cells = lines[at].split(random.choice([",", '"', " ", "=", ":"]))
        cell = random.randrange(len(cells))
        cells[cell] = (
            json.dumps(random.choice(JUNK)) if random.random() < 0.5 else str(random.choice(JUNK))[:5000]
        )
        lines[at] = random.choice([",", '"', " ", "=", ":"]).join(cells)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def json_of(value: Any, random: Random) -> bytes:
    """What a JSON file says, changed in a place or two; now and then no JSON."""
    if random.random() < 0.1:
        return text_of(json.dumps(value, indent=1), random)
    if random.random() < 0.03:
        return b"[" * 100_000
    changed = json.loads(json.dumps(value))
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        changed = _changed(changed, random)
    return json.dumps(changed).encode()


def _changed(value: Any, random: Random) -> Any:
    """The value with something changed somewhere inside."""
    keys = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    if not keys or random.random() < 0.15:
        return _other(value, random)
    key = random.choice(keys)
    how = random.random()
    if how < 0.15:
        del value[key]
    elif how < 0.25 and isinstance(value, dict):
        value[random.choice(["", "zz", str(key).upper(), "schema"])] = value.pop(key)
    elif how < 0.3 and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = _changed(value[key], random)
    return value


def _other(value: Any, random: Random) -> Any:
    how = random.random()
    if how < 0.2 and isinstance(value, int | float) and not isinstance(value, bool):
        return random.choice([-value, value + 1, value * 1000, float(value), str(value), value - 1])
    if how < 0.2 and isinstance(value, str):
        return random.choice([value[:-1], value + "x", value * 50, value.upper(), [value], {"text": value}])
    if how < 0.25:
        return deep(random.choice([3, 50, 400]))
    return junk(random)


def frame_of(frame: pl.DataFrame, random: Random) -> pl.DataFrame:
    """A table with rows dropped, doubled or moved, or values or columns changed."""
    how = random.randrange(7)
    size = len(frame)
    if how == 0:
        return frame.filter(pl.Series(range(size)) != random.randrange(size))
    if how == 1:
        return pl.concat([frame, frame.slice(random.randrange(size), random.randrange(1, 5))])
    if how == 2:
        return frame.head(random.randrange(size))
    name = random.choice(frame.columns)
    if how == 3:
        return frame.drop(name)
    if how == 4:
        return frame.rename({name: random.choice(["zz", name.upper()])})
    try:
        if how == 5:
            kind = random.choice([pl.String, pl.Int8, pl.Float64])
            return frame.with_columns(pl.col(name).cast(kind, strict=False))
        rows = pl.Series(range(size)) == random.randrange(size)
        junk = random.choice([None, -1, 0, 1, 5, 70000, 0.5, "x"])
        other = pl.lit(junk).cast(frame.schema[name], strict=False)
        return frame.with_columns(pl.when(rows).then(other).otherwise(pl.col(name)).alias(name))
    except pl.exceptions.PolarsError:  # lists cannot be cast
        return frame.drop(name)
