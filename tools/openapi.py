"""Write what is generated of the reference: the API's description and the table of settings.

python tools/openapi.py [--check]         # --check: exit 1 when a file is not what it should be
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ramet.api.app import openapi
from ramet.host.settings import reference

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "reference"

_SETTINGS = """\
# Settings

The daemon reads its settings when it starts. What wins: a flag of `ramet serve`, then a variable of the environment,
then `settings.toml` in the state folder, then the default. A key that does not exist is refused.

"""


def generated() -> dict[Path, str]:
    """Every generated file and what stands in it."""
    return {
        DOCS / "openapi.json": json.dumps(openapi(), indent=1, ensure_ascii=False, sort_keys=True) + "\n",
        DOCS / "settings.md": _SETTINGS + reference(),
    }


def main() -> int:
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        print(f"{'stale' if '--check' in sys.argv else 'wrote'}: {path.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
