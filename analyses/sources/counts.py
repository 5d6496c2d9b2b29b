"""The table of docs/reference/sources.md: licences and homes from the catalogue, counts from the data.

    python -m analyses.sources.counts [--data-dir DIR]

With ``--data-dir`` the rows of every source that is there are read and counted anew, into counts.json; of others, and
without it, the table is made from the counts that are stored. No row is stored.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from memprobe.errors import MemprobeError
from memprobe.sources.listing import KEPT, READ, listed
from memprobe.sources.origins import data_folder
from memprobe.wording import markdown_table

HERE = Path(__file__).parent
COUNTS = HERE / "counts.json"
PAGE = HERE.parents[1] / "docs" / "reference" / "sources.md"
_TABLE = re.compile(r"^\| source \|.*?\n(?=\n)", re.S | re.M)


def count(folder: Path) -> dict[str, dict[str, int]]:
    """By source, rows read, kept, and taken out by each rule."""
    found = {one.name: one.counts for one in listed(folder, splits=True)}
    return {name: {rule: n for rule, n in counts.items() if n} for name, counts in found.items() if counts}


def table(stored: dict[str, dict[str, int]]) -> str:
    """The table of sources as Markdown."""
    head = ["source", "kind", "rows in file", "kept", "taken out", "licence", "hub id", "note"]
    rows = []
    about = {one.name: one for one in listed(None)}
    parts = {known: [name for name in stored if name.startswith(f"{known}:")] for known in about}
    for name in [each for known in about for each in (known, *parts[known])]:
        one = about.get(name) or about[name.partition(":")[0]]
        counts = dict(stored.get(name, {}))
        read, kept = (counts.pop(rule, None) for rule in (READ, KEPT))
        told = [f"{n:,}" if n is not None else one.amount for n in (read, kept)]
        taken = ", ".join(f"{n:,} {rule}" for rule, n in counts.items())
        note = one.note if name in about else ""
        rows.append([f"`{name}`", one.kind, *told, taken, one.licence, one.hub, note])
    return "\n".join(markdown_table(head, rows, right={2, 3}, gap="")) + "\n"


def written(page: str, made: str) -> str:
    """The page with this table in the place of the one that it has."""
    text, n = _TABLE.subn(lambda _: made, page)
    assert n == 1, "the page has one table of sources"
    return text


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path)
    asked = parser.parse_args().data_dir
    if asked is not None:
        try:
            folder = data_folder(asked)
            assert folder is not None
            found = stored_counts() | count(folder)
        except MemprobeError as error:
            parser.error(str(error))
        COUNTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), table(stored_counts())), encoding="utf-8")


def stored_counts() -> dict[str, Any]:
    """What the last count found."""
    return json.loads(COUNTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
