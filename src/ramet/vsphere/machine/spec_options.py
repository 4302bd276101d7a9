"""OptionValues, which may have values of any type, and a VM's extra configuration, which is text.

    options_of(values) -> Options           # InvalidArgument for a key or a value that cannot be one
    options.set, options.unset

As in the original: an empty value takes a key away. Keys that say something to this server are its own; see `IDENTITY`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ramet.model.machine import check_extra_config
from ramet.vsphere.types import vmodl

IDENTITY = "ramet.identity"
"""In an instant clone's `config`: 'auto' gives the clone an identity of its own; 'bare', or no such key, does not."""
IMAGE = "ramet.image"
"""In the extraConfig of a VM that is to be created: the image that its first disks come from."""

SALT = "sched.mem.pshare.salt"


@dataclass(frozen=True, slots=True)
class Options:
    set: dict[str, str] = field(default_factory=dict)
    """Keys in lower case, as they are kept."""
    unset: tuple[str, ...] = ()

    def taking(self, key: str) -> tuple[str | None, Options]:
        """The value of one key, and the rest."""
        rest = {name: value for name, value in self.set.items() if name != key}
        return self.set.get(key), Options(rest, self.unset)


def options_of(values: Sequence[Any] | None, where: str) -> Options:
    """`where`: the path of the list, for the fault."""
    wanted: dict[str, str] = {}
    unset: dict[str, None] = {}
    for number, option in enumerate(values or ()):
        key, text = str(option.key or "").lower(), text_of(option.value)
        try:
            check_extra_config(key, text)
        except ValueError as exc:
            raise vmodl.fault.InvalidArgument(invalidProperty=f"{where}[{number}]", msg=f"{exc}.") from exc
        _refuse_salt(key, text)
        wanted.pop(key, None)
        unset.pop(key, None)
        if text:
            wanted[key] = text
        else:
            unset[key] = None
    return Options(wanted, tuple(unset))


def text_of(value: Any) -> str:
    """As the original writes it: truth as TRUE and FALSE, nothing as nothing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return str(value)


def _refuse_salt(key: str, text: str) -> None:
    """KSM has no borders, so pages cannot be shared among the VMs of one salt and kept from the rest."""
    if key == SALT and text:
        raise vmodl.fault.NotSupported(
            msg=f"{SALT} cannot be honoured: the kernel shares pages inside a lineage, or among all VMs of the host, "
            "and knows no groups between. Mem.ShareForceSalting of the host chooses which."
        )
