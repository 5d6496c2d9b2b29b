"""The terminal shows what files say, and obeys none of it."""

import io
import json

import pytest
from rich.table import Table

from memprobe.cli.progress import Bars
from memprobe.cli.terminal import echo, echo_json, spelled, terminal

HOSTILE = "a\x1b]0;title\x07b\x9b31mc[/]d[link=file:///e]f:smile:\rg\u202eh\ud800"
SHOWN = r"a\x1b]0;title\x07b\x9b31mc[/]d[link=file:///e]f:smile:\rg\u202eh\ud800"


def test_what_a_terminal_would_obey_is_spelled_out():
    assert spelled(HOSTILE) == SHOWN
    kept = "two\nlines\tand a tab, São Paulo, 日本, \u00a0, 👩\u200d🔬"
    assert spelled(kept) == kept


def test_lines_tables_titles_and_bars_are_shown_as_they_are(capsys):
    echo(HOSTILE)
    screen = io.StringIO()
    console = terminal(file=screen, force_terminal=True, width=200, highlight=False)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE)
    assert capsys.readouterr().out == SHOWN + "\n"
    # rich leaves out bells and carriage returns by itself
    assert screen.getvalue().count(SHOWN.replace(r"\x07", "").replace(r"\r", "")) == 4
    for obeyed in ("\x1b]", "\x07", "\x9b", "\u202e", "😄"):
        assert obeyed not in screen.getvalue()


def test_a_bar_may_carry_any_label(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("memprobe.cli.progress.terminal", lambda **_: _on(screen))
    with Bars() as bars:
        bars.update(HOSTILE, 0, 2, note="[/]")
        bars.update(HOSTILE, 2, 2, note="[/]")
    assert SHOWN.replace(r"\x07", "").replace(r"\r", "") in screen.getvalue()


def _on(screen):
    from memprobe.cli.terminal import _console_class

    return _console_class()(file=screen, force_terminal=True, width=300, markup=False, emoji=False)


@pytest.mark.parametrize("value", [HOSTILE.replace("\ud800", ""), "São Paulo \x7f\x85"])
def test_json_reads_back_the_same_and_moves_no_cursor(capsys, value):
    echo_json({"label": value})
    out = capsys.readouterr().out
    assert json.loads(out) == {"label": value}
    assert spelled(out) == out
