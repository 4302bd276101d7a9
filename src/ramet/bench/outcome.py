"""What a case hands over, and how a case is declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ramet.bench.figures import Figures, Target
from ramet.bench.stage import Stage


@dataclass
class Outcome:
    """Filled in while the case runs, so that what was measured before a failure is not lost."""

    guest: str = ""
    figures: Figures = field(default_factory=Figures)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One row of the table of what is to be reached."""

    name: str
    title: str
    run: Callable[[Stage, Outcome], None]
    recipes: Sequence[str]
    """Guests that it boots."""
    quick_recipes: Sequence[str] = ("micro",)

    def guests(self, *, quick: bool) -> set[str]:
        return set(self.quick_recipes if quick else self.recipes)
