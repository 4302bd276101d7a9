"""Reports as a bench makes them, from a few numbers."""

from __future__ import annotations

from ramet.bench.figures import CaseResult, Facts, Figures, Report, Target

FACTS = Facts(
    version="0.1.0",
    cores=2,
    processor="Some CPU",
    kernel="6.1",
    memory_mib=2048,
    qemu_version="7.2.22",
    accelerator="tcg",
    load_before=0.1,
    load_after=1.5,
    command_line_ms=250.0,
)


def report(
    *targets: Target, case: str = "frozen", figures: Figures | None = None, problem: str | None = None
) -> Report:
    series = figures.series() if figures else {}
    result = CaseResult(
        case=case, title="A clone", guest="micro", series=series, targets=targets, problem=problem, took_s=1.0
    )
    return Report(at=1.0, quick=True, facts=FACTS, cases=(result,))


def target(measured: float, *, noise: float = 0.0, at_least: bool = False, name: str = "clone ÷ boot") -> Target:
    return Target(name=name, limit=1.0, measured=measured, noise=noise, at_least=at_least)
