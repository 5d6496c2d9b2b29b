"""Every family's tiny model against its own unpadded forward passes; the documentation's table says what was found."""

import re
from pathlib import Path

import pytest

from tests.families import FAMILIES, examine

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "families.md"


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").split("\n") if line.startswith("| ")][1:]
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {family: rest for family, *rest in cells}


def without_numbers(text: str) -> str:
    """Differences are rounded otherwise on other processors."""
    return re.sub(r"[0-9.]+(e-?[0-9]+)?", "#", text)


def test_the_page_has_every_family():
    assert list(rows()) == sorted(FAMILIES) and len(FAMILIES) >= 96


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.filterwarnings("ignore")
def test_a_family_is_read_as_its_own_forward_pass_says_or_refused(family):
    found = examine(family)
    architecture, read, together, patched = rows()[family]
    assert found.architecture == architecture and found.together == together
    if found.refused is not None:
        assert without_numbers(read) == without_numbers(f"no: {found.refused}")
        assert len(found.refused.splitlines()) == 1
        return
    assert read == "yes"
    if found.unpatched is None:
        assert patched == "yes" and found.patched < 1e-4
    else:
        assert without_numbers(patched) == without_numbers(f"no: {found.unpatched}")
        assert len(found.unpatched.splitlines()) == 1
    assert found.log_prob < 1e-4 and (found.ranks, found.predictions, found.alone) == (0, 0, 0)
