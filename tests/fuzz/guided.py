"""One target under atheris: python -m tests.fuzz.guided TARGET CORPUS [libFuzzer's options]."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["ramet"]):
        targets = importlib.import_module("tests.fuzz.targets")
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, targets.TARGETS[name].call)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
