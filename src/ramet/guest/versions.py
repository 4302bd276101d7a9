"""Which of two package versions is the newer, by the rules of Debian; those of RPM and apk agree where it counts."""

from __future__ import annotations

import re
from itertools import zip_longest

_PARTS = re.compile(r"(\D*)(\d*)")


def compare(left: str, right: str) -> int:
    """Negative when `left` is the older one, 0 when they are equal, positive when it is the newer one."""
    (left_epoch, left_rest), (right_epoch, right_rest) = _split(left), _split(right)
    if left_epoch != right_epoch:
        return left_epoch - right_epoch
    left_main, _, left_revision = left_rest.rpartition("-") if "-" in left_rest else (left_rest, "", "")
    right_main, _, right_revision = right_rest.rpartition("-") if "-" in right_rest else (right_rest, "", "")
    return _compare(left_main, right_main) or _compare(left_revision, right_revision)


def _split(version: str) -> tuple[int, str]:
    epoch, sign, rest = version.partition(":")
    return (int(epoch[:9]), rest) if sign and re.fullmatch(r"[0-9]+", epoch) else (0, version)


def _compare(left: str, right: str) -> int:
    for (left_text, left_number), (right_text, right_number) in zip_longest(
        _PARTS.findall(left), _PARTS.findall(right), fillvalue=("", "")
    ):
        for a, b in zip_longest(left_text, right_text):
            if (order := _weight(a) - _weight(b)) != 0:
                return order
        # As numbers, without turning what a guest sent into one: longer is more, once zeros are gone.
        a, b = left_number.lstrip("0"), right_number.lstrip("0")
        if a != b:
            return -1 if (len(a), a) < (len(b), b) else 1
    return 0


def _weight(letter: str | None) -> int:
    """'~' comes before the end, the end before letters, letters before all else."""
    if letter == "~":
        return -1
    if letter is None:
        return 0
    return ord(letter) if letter.isascii() and letter.isalpha() else ord(letter) + 256
