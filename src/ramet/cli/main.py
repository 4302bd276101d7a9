"""Entry point of the ``ramet`` program."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit."""
    if sys.argv[1:] in (["version"], ["--version"]):
        # Scripts ask this often; it need not load the application, which takes a quarter of a second.
        from ramet import __version__

        print(f"ramet {__version__}")
        return
    from ramet.cli.app import application

    application(prog_name="ramet")
