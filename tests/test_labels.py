"""Names before what they name: where they end, and that none is lost."""

from __future__ import annotations

import pytest

from memprobe.errors import MemprobeError
from memprobe.labels import named_once, split_name, split_outside


@pytest.mark.parametrize(
    ("text", "there", "split"),
    [
        ("out/base", {"out/base"}, (None, "out/base")),
        ("x=out/base", {"out/base"}, ("x", "out/base")),
        ("x=out/lr=1e-4/a", {"out/lr=1e-4/a"}, ("x", "out/lr=1e-4/a")),
        ("lr=1e-4=out/a", {"out/a"}, ("lr=1e-4", "out/a")),
        ("lr=1=out/b=2", {"out/b=2"}, ("lr=1", "out/b=2")),
        ("x=out/lr=1", set(), ("x", "out/lr=1")),
        (" x = out ", {"out"}, ("x", "out")),
    ],
)
def test_a_name_and_what_it_names_may_hold_the_sign_between_them(text, there, split):
    assert split_name(text, lambda _, thing: thing in there) == split


@pytest.mark.parametrize(
    ("text", "mark", "pieces"),
    [
        ("replay(ratio=0.1):0:2", ":", ["replay(ratio=0.1)", "0", "2"]),
        ("remix(data=kvr:8:test, stages=1):0", ":", ["remix(data=kvr:8:test, stages=1)", "0"]),
        ("lr=1=remix(data=a)+ewc(strength=1):0", "=", ["lr", "1", "remix(data=a)+ewc(strength=1):0"]),
        ("f(g(a=b)=c)=d", "=", ["f(g(a=b)=c)", "d"]),
        ("a)=b", "=", ["a)", "b"]),
        ("", "=", [""]),
    ],
)
def test_marks_in_brackets_divide_nothing(text, mark, pieces):
    assert split_outside(text, mark) == pieces


def test_no_name_is_given_twice():
    assert named_once("--arm", [("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
    with pytest.raises(MemprobeError, match=r"--arm a=…: 'a' is given twice"):
        named_once("--arm", [("a", 1), ("b", 2), ("a", 1)])
