"""Numbers of a report as text: empty where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from memprobe.wording import markdown_table


def as_markdown(table: pl.DataFrame, formats: Mapping[str, Any]) -> list[str]:
    rows = [
        [formats.get(name, plain)(value) for name, value in row.items()]
        for row in table.iter_rows(named=True)
    ]
    return markdown_table(table.columns, rows)


def plain(value: Any) -> str:
    return "" if value is None else str(value)


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def number_of(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def interval(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    if row[f"{name}_low"] is None:
        return percent(row[name])
    return f"{100 * row[name]:.0f} % [{100 * row[f'{name}_low']:.0f}, {100 * row[f'{name}_high']:.0f}]"


def fraction(row: Mapping[str, Any], name: str, suffix: str = "") -> str:
    value, low, high = (row[f"{name}{end}{suffix}"] for end in ("", "_low", "_high"))
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")
