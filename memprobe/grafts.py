"""The spec of a graft: the weights of some blocks of one checkpoint in another.

    graft(INTO, FROM, blocks=5-10)                  everything in blocks 5 to 10 is FROM's
    graft(INTO, FROM, blocks=7, parts=mlp)          block 7's MLP alone
    graft(INTO, FROM, parts=embeddings)             what comes before the blocks
    graft(INTO, FROM, blocks=1-30, parts=all+embeddings+head)     FROM itself, where it has 30 blocks

After dynamic weight grafting (Nief et al. 2026, arXiv 2506.20746). Blocks are counted from 1. Parts of a block are
``attn``, ``mlp`` and ``norms``, and ``all`` is the whole block; outside the blocks are ``embeddings`` (all that comes
before them) and ``head`` (the final norm and the unembedding). INTO and FROM are checkpoint specs, grafts too. No torch
here; :mod:`memprobe.grafting` moves the weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from memprobe.errors import MemprobeError, among

BLOCK_PARTS = ("all", "attn", "mlp", "norms")
OUTER_PARTS = ("embeddings", "head")
_START = "graft("
_NAMED = re.compile(r"(blocks|parts)\s*=")
_BLOCKS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class Graft:
    """Which weights come from the other checkpoint.

    Attributes:
        blocks: the first and the last block, from 1; ``None`` where only outer parts are grafted.
        parts: of :data:`BLOCK_PARTS` and :data:`OUTER_PARTS`.
    """

    blocks: tuple[int, int] | None
    parts: tuple[str, ...] = ("all",)

    def __str__(self) -> str:
        blocks = "" if self.blocks is None else f"blocks={_blocks_text(self.blocks)}"
        parts = "" if self.parts == ("all",) else f"parts={'+'.join(self.parts)}"
        return ", ".join(filter(None, (blocks, parts)))

    @property
    def short(self) -> str:
        """For labels: ``5-10 mlp``."""
        return " ".join(
            filter(
                None,
                (
                    "" if self.blocks is None else _blocks_text(self.blocks),
                    "" if self.parts == ("all",) else "+".join(self.parts),
                ),
            )
        )


def is_graft(spec: str) -> bool:
    """Whether a spec is of a graft."""
    return spec.strip().startswith(_START)


def parse_graft(spec: str) -> tuple[str, str, Graft]:
    """INTO, FROM and what is grafted.

    Raises:
        MemprobeError: not of that form, no block named, or an unknown part.
    """
    text = spec.strip()
    if not text.endswith(")"):
        raise MemprobeError(f"{spec}: the bracket of graft( is not closed")
    arguments = _split(text[len(_START) : -1], spec)
    named, arguments = _named_last(arguments, spec, "write graft(INTO, FROM, blocks=5-10, parts=all)", keep=2)
    given = [text for text in arguments if text and not _NAMED.match(text)]
    if len(given) < 2:
        raise MemprobeError(
            f"{spec}: names {len(given)} of two checkpoints; write graft(INTO, FROM, blocks=5-10, parts=all)"
        )
    return arguments[0], arguments[1], make_graft(named.get("blocks"), named.get("parts"), spec)


def parse_places(text: str) -> Graft:
    """Blocks and parts without checkpoints: ``blocks=5``, ``blocks=5-10, parts=mlp``, ``parts=embeddings``.

    Raises:
        MemprobeError: not of that form, no block named, or an unknown part.
    """
    named, _ = _named_last(_split(text, text), text, "write blocks=5 or blocks=5-10, parts=mlp")
    return make_graft(named.get("blocks"), named.get("parts"), text)


def _named_last(
    arguments: list[str], spec: str, how: str, *, keep: int = 0
) -> tuple[dict[str, str], list[str]]:
    """What ``blocks=`` and ``parts=`` say at the end of some arguments, and the first ``keep`` ones."""
    named: dict[str, str] = {}
    for argument in arguments[: keep - 1 : -1] if keep else arguments[::-1]:
        name, equals, value = argument.partition("=")
        if not equals or name.strip() not in ("blocks", "parts"):
            raise MemprobeError(f"{spec}: {name.strip()!r} is not blocks=… or parts=…; {how}")
        if name.strip() in named:
            raise MemprobeError(f"{spec}: names its {name.strip()} twice")
        named[name.strip()] = value.strip()
    return named, arguments[:keep]


def make_graft(blocks: str | None, parts: str | None, spec: str = "graft") -> Graft:
    """A graft from what ``blocks=`` and ``parts=`` say.

    Raises:
        MemprobeError: no block is named though a block's parts are, or something that is none.
    """
    chosen = tuple(dict.fromkeys(part.strip() for part in (parts or "all").split("+")))
    if unknown := [part for part in chosen if part not in (*BLOCK_PARTS, *OUTER_PARTS)]:
        raise MemprobeError(
            f"{spec}: no part {unknown[0]!r}; {among(unknown[0], (*BLOCK_PARTS, *OUTER_PARTS))}"
        )
    inner = [part for part in chosen if part in BLOCK_PARTS]
    if not blocks:
        if inner:
            raise MemprobeError(f"{spec}: names no block; say which, as in blocks=5-10")
        return Graft(None, chosen)
    if not inner:
        raise MemprobeError(f"{spec}: names blocks, but parts={'+'.join(chosen)} lie outside the blocks")
    match = _BLOCKS.fullmatch(blocks.replace(" ", ""))
    if match is None:
        raise MemprobeError(f"{spec}: blocks={blocks} is neither a number nor two, as in 5-10")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last:
        raise MemprobeError(f"{spec}: blocks={blocks} names no block; they are counted from 1")
    return Graft((first, last), chosen)


def _blocks_text(blocks: tuple[int, int]) -> str:
    first, last = blocks
    return str(first) if first == last else f"{first}-{last}"


def _split(text: str, spec: str) -> list[str]:
    """Arguments between commas that stand in no inner bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            raise MemprobeError(f"{spec}: a bracket too many")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise MemprobeError(f"{spec}: a bracket is not closed")
    return [part.strip() for part in parts]
