"""What the user sees: tables and colours on a terminal, plain aligned text otherwise, JSON when asked for.

Plain text holds no box characters and no escape sequences, and is never cut to a width: it is meant for
pipes. Texts that come from guests (addresses, names in events) could hold terminal escapes; `clean` makes
them visible before they are printed. Rich is imported on first use only, as it costs 50 ms.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

STATE_STYLE = {
    "running": "green",
    "frozen": "cyan",
    "paused": "bold red",
    "suspended": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "off": "dim",
    "ok": "green",
    "warning": "yellow",
    "missing": "bold red",
    "success": "green",
    "error": "bold red",
    "cancelled": "yellow",
    "queued": "dim",
}


@dataclass(frozen=True)
class Cell:
    """A piece of text with a Rich style, which plain output leaves out."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Column:
    title: str
    right: bool = False
    style: str = ""


@dataclass
class Branch:
    """A drawn tree: lineages, chains of layers."""

    label: Sequence[Cell | str] | Cell | str
    children: list[Branch] = field(default_factory=list)


def clean(text: str) -> str:
    """Control characters made visible: what a guest says must not steer the user's terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def state_cell(state: str) -> Cell:
    return Cell(state, STATE_STYLE.get(state, ""))


def as_data(value: Any) -> Any:
    """Models, and containers of them, to what the json module takes."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, dict):
        return {key: as_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_data(item) for item in value]
    return value


def _cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def _cells(value: Sequence[Cell | str] | Cell | str) -> list[Cell]:
    return [_cell(value)] if isinstance(value, (Cell, str)) else [_cell(part) for part in value]


class Output:
    """Where a command's words go. Data to stdout; notes, progress and errors to stderr.

    `terminal` None means: look. NO_COLOR takes the colours and keeps the tables; TERM=dumb counts as no terminal.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        terminal: bool | None = None,
        width: int | None = None,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.stdout = sys.stdout if stdout is None else stdout
        self.stderr = sys.stderr if stderr is None else stderr
        self.terminal = is_terminal(self.stdout) if terminal is None else terminal
        self.error_terminal = is_terminal(self.stderr) if terminal is None else terminal
        self._width = width
        self._consoles: dict[bool, Console] = {}

    # -- data --------------------------------------------------------------------------------------------------

    def json(self, value: Any, *, one_line: bool = False) -> None:
        """One JSON document."""
        self._write(json.dumps(as_data(value), indent=None if one_line else 2))

    def line(self, *parts: Cell | str) -> None:
        """A line of data; parts are joined as they are."""
        cells = [_cell(part) for part in parts]
        if self.terminal:
            self.console().print(_text(cells), soft_wrap=True)
        else:
            self._write("".join(clean(cell.text) for cell in cells).rstrip())

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell | str]], *, empty: str = "") -> None:
        """A table; `empty` is what to say (on stderr) when there is no row. Quiet: the first column alone."""
        body = [[_cell(value) for value in row] for row in rows]
        if self.quiet:
            for row in body:
                self._write(clean(row[0].text))
        elif not body:
            self.note(empty)
        elif self.terminal:
            self._rich_table(columns, body)
        else:
            self._plain_table(columns, body)

    def grid(self, rows: Sequence[Sequence[Sequence[Cell | str]]], *, indent: int = 0) -> None:
        """Aligned cells without titles; on a terminal the last one wraps inside its column. A newline goes on there."""
        cells = [[_cells(cell) for cell in row] for row in rows]
        if self.terminal:
            self._rich_grid(cells, indent)
            return
        widths = [
            max((len(_plain(row[i])) for row in cells), default=0) for i in range(len(cells[0]) - 1 if cells else 0)
        ]
        margin = "\n" + " " * (indent + sum(widths) + 2 * len(widths))
        for row in cells:
            lead = "  ".join(_plain(cell).ljust(width) for cell, width in zip(row, widths, strict=False))
            last = "\n".join(clean(line) for line in "".join(cell.text for cell in row[-1]).split("\n"))
            self._write(" " * indent + lead + "  " + last.replace("\n", margin))

    def facts(self, pairs: Iterable[tuple[str, Sequence[Cell | str] | Cell | str]], *, indent: int = 0) -> None:
        """Aligned ``label  value`` lines; pairs with an empty value are left out."""
        known = [(label, _cells(value)) for label, value in pairs]
        shown = [(label, cells) for label, cells in known if any(cell.text for cell in cells)]
        width = max((len(label) for label, _ in shown), default=0)
        for label, cells in shown:
            self.line(" " * indent, Cell(label.ljust(width), "bold" if indent == 0 else ""), "  ", *cells)

    def tree(self, roots: Sequence[Branch], *, indent: int = 0) -> None:
        """Branches, drawn with lines on a terminal and by indentation otherwise."""
        for root in roots:
            self.line(" " * indent, *_cells(root.label))
            self._children(root.children, " " * indent)

    def _children(self, branches: Sequence[Branch], prefix: str) -> None:
        for number, branch in enumerate(branches):
            last = number == len(branches) - 1
            lead, more = ("└─ " if last else "├─ ", "   " if last else "│  ") if self.terminal else ("  ", "  ")
            self.line(prefix, Cell(lead, "dim"), *_cells(branch.label))
            self._children(branch.children, prefix + more)

    def raw(self, data: bytes, *, error: bool = False) -> None:
        """Bytes of a guest, as they are."""
        stream = self.stderr if error else self.stdout
        stream.flush()
        buffer = getattr(stream, "buffer", None)
        if buffer is None:
            stream.write(data.decode(errors="replace"))
        else:
            buffer.write(data)
        stream.flush()

    # -- words for people --------------------------------------------------------------------------------------

    def beside(self) -> Output:
        """An output whose data go to stderr: reports beside the data of others."""
        return Output(
            quiet=self.quiet, terminal=self.error_terminal, width=self._width, stdout=self.stderr, stderr=self.stderr
        )

    def say(self, *parts: Cell | str) -> None:
        """What was done, on stdout; nothing with --json or --quiet."""
        if not self.as_json and not self.quiet:
            self.line(*parts)

    def note(self, text: str) -> None:
        """A remark on stderr, not part of the data."""
        if text and not self.quiet and not self.as_json:
            self._complain(Cell(clean(text), "dim"))

    def warn(self, text: str) -> None:
        self._complain(Cell("warning: ", "bold yellow"), Cell(clean(text)))

    def error(self, message: str, hint: str | None = None) -> None:
        self._complain(Cell("error: ", "bold red"), Cell(clean(message)))
        if hint:
            self.hint(hint)

    def hint(self, text: str) -> None:
        self._complain(Cell("hint: ", "bold cyan"), Cell(clean(text)))

    def _complain(self, *cells: Cell) -> None:
        self.stdout.flush()
        if self.error_terminal:
            self.console(error=True).print(_text(cells), soft_wrap=True)
        else:
            self.stderr.write("".join(cell.text for cell in cells) + "\n")
        self.stderr.flush()

    # -- how -----------------------------------------------------------------------------------------------------

    def console(self, *, error: bool = False) -> Console:
        """The Rich console of stdout or stderr."""
        from rich.console import Console

        if error not in self._consoles:
            self._consoles[error] = Console(
                file=self.stderr if error else self.stdout,
                force_terminal=self.error_terminal if error else self.terminal,
                width=self._width,
                highlight=False,
                emoji=False,
            )
        return self._consoles[error]

    def _write(self, text: str) -> None:
        self.stdout.write(text + "\n")
        self.stdout.flush()

    def _rich_table(self, columns: Sequence[Column], rows: list[list[Cell]]) -> None:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
        for column in columns:
            justify = "right" if column.right else "left"
            table.add_column(column.title, justify=justify, style=column.style, overflow="fold")  # type: ignore[arg-type]
        for row in rows:
            table.add_row(*(_text([cell]) for cell in row))
        self.console().print(table)

    def _rich_grid(self, rows: list[list[list[Cell]]], indent: int) -> None:
        from rich.padding import Padding
        from rich.table import Table

        table = Table.grid(padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*(_text(cell, lines=True) for cell in row))
        self.console().print(Padding(table, (0, 0, 0, indent)))

    def _plain_table(self, columns: Sequence[Column], rows: list[list[Cell]]) -> None:
        texts = [[column.title.upper() for column in columns], *([clean(c.text) or "-" for c in row] for row in rows)]
        widths = [max(len(row[i]) for row in texts) for i in range(len(columns))]
        for row in texts:
            padded = (
                text.rjust(width) if column.right else text.ljust(width)
                for text, width, column in zip(row, widths, columns, strict=True)
            )
            self._write("  ".join(padded).rstrip())


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _plain(cells: Iterable[Cell]) -> str:
    return "".join(clean(cell.text) for cell in cells)


def _text(cells: Iterable[Cell], *, lines: bool = False) -> Any:
    from rich.text import Text

    text = Text()
    for cell in cells:
        cleaned = "\n".join(map(clean, cell.text.split("\n"))) if lines else clean(cell.text)
        text.append(cleaned, style=cell.style)
    return text


# -- numbers as people read them ---------------------------------------------------------------------------------


def millis(value: float | None) -> str:
    """12.34 -> '12 ms', 1234 -> '1.2 s', 75000 -> '1 min 15 s'."""
    if value is None:
        return ""
    if value < 10:
        return f"{value:.1f} ms"
    if value < 1000:
        return f"{value:.0f} ms"
    if value < 60_000:
        return f"{value / 1000:.1f} s"
    return f"{int(value // 60_000)} min {int(value % 60_000 // 1000)} s"


def duration(seconds: float) -> str:
    """The two largest units: '45 s', '3 min 5 s', '2 h 1 min', '4 d 2 h'."""
    whole = max(0, int(seconds))
    units = (("d", whole // 86400), ("h", whole // 3600 % 24), ("min", whole // 60 % 60), ("s", whole % 60))
    first = next((i for i, (_, n) in enumerate(units) if n), len(units) - 1)
    return " ".join(f"{n} {unit}" for unit, n in units[first : first + 2] if n) or "0 s"


def size(count: float | None) -> str:
    """Bytes with a binary unit; '' when unknown."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
