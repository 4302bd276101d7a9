"""Bytes that are almost right: what a random mutator makes of real ones."""

from __future__ import annotations

import random

_NUMBERS = (b"\x00", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"-1", b"1e999", b"9" * 400, b"NaN")
_STRANGE = (*_NUMBERS, b"\n", b"\t", b"\xf0\x28", b"[" * 3000, b'{"a":' * 3000)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to eight changes: bits, bytes, pieces cut out, doubled or moved, strange numbers and nests put in."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(found) + 1)
        size = min(len(found) - at, chance.choice((1, 2, 4, 8, 64, 1024)))
        match chance.randrange(7):
            case 0 if found:
                found[at % len(found)] ^= 1 << chance.randrange(8)
            case 1:
                found[at : at + size] = chance.randbytes(size)
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = found[at : at + size]
            case 4:
                found[at : at + chance.choice((0, size))] = chance.choice(_STRANGE)
            case 5:
                other = chance.randrange(len(found) + 1)
                found[other : other + size] = found[at : at + size]
            case _:
                del found[at + chance.randrange(1 + len(found) - at) :]
    return bytes(found)
