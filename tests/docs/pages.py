"""The pages as programs: what a reader types in them, what they show, and what is not run for a stated reason.

A block marked ``console`` holds lines ``$ command`` (``> `` goes on with a command) and, below each, what it prints.
Words for the test stand in an HTML comment on the line before a block:

    <!-- not run: REASON -->     the block is for readers only
    <!-- output varies -->       run it, and do not compare what it prints
    <!-- file: NAME -->          the block, of any language, is saved under NAME in the folder the commands run in

A command whose shown output has a line ``error: …`` must fail; every other must succeed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_UNITS = {"B", "KiB", "MiB", "GiB", "ms", "s", "min", "h", "d", "KB", "kB", "MB"}
_ID = re.compile(r"^[0-9a-f]{12}\b")


@dataclass(frozen=True)
class Block:
    kind: str
    """The language after the fence."""
    note: str
    """The comment before it, without its marks."""
    text: str

    @property
    def file_name(self) -> str | None:
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else None

    @property
    def is_run(self) -> bool:
        return self.kind == "console" and not self.note.startswith("not run: ")


@dataclass(frozen=True)
class Command:
    text: str
    shown: tuple[str, ...]
    """What the page shows below it."""
    varies: bool

    @property
    def fails(self) -> bool:
        return any(line.startswith("error: ") for line in self.shown)


def all_pages() -> list[Path]:
    return [README, *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["kind"], match["note"] or "", match["text"]) for match in found]


def prose(page: Path) -> str:
    """The page without its blocks, comments and `code`."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`]*`", "", re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL))


def commands(block: Block) -> Iterator[Command]:
    """The commands of a console block, each with what is shown below it."""
    typed: list[str] = []
    shown: list[str] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if typed:
                yield _command(typed, shown, block)
            typed, shown = [line[2:]], []
        elif line.startswith("> ") and not shown:
            typed.append(line[2:])
        else:
            shown.append(line)
    if typed:
        yield _command(typed, shown, block)


def _command(typed: list[str], shown: list[str], block: Block) -> Command:
    return Command("\n".join(typed), tuple(line for line in shown if line.strip()), block.note == "output varies")


def shape(line: str) -> tuple[str, ...]:
    """A line without what differs between two runs: numbers, ids, units, what is not known yet, and columns' widths."""
    words = [_word(word) for word in line.split() if word not in _UNITS]
    return tuple(word for before, word in zip(["", *words], words, strict=False) if (before, word) != ("#", "#"))


def _word(word: str) -> str:
    return "#" if word == "-" or any(c.isdigit() for c in word) or _ID.match(word) else word


def find_missing(shown: tuple[str, ...], printed: str) -> str | None:
    """The first line of `shown` that `printed` does not have, in order; None when it has them all.

    A line of `shown` that is only ``…`` stands for any lines; ``…`` at a line's end for any words.
    """
    rest = iter([shape(line) for line in printed.splitlines()])
    for line in shown:
        wanted = shape(line)
        if wanted == ("…",):
            continue
        if not any(_is_like(wanted, found) for found in rest):
            return line
    return None


def _is_like(wanted: tuple[str, ...], found: tuple[str, ...]) -> bool:
    if wanted and wanted[-1].endswith("…"):
        start = wanted[:-1]
        return found[: len(start)] == start
    return wanted == found
