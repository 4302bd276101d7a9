"""What CPUID says of this host's processor, put together from the flags that the kernel prints.

The instruction itself is not Python's to run. Bits: Linux's arch/x86/include/asm/cpufeatures.h (6.1), words 0, 1, 4, 6.
Some clients of the API read from here whether a host runs 64-bit guests.

    cpu_features(facts.cpu) -> [HostCpuIdInfo]      # of the levels 0, 1 and 0x80000001
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ramet.vsphere.types import vim

_EXTENDED: Final = -0x7FFFFFFF  # 0x80000001, in the 32 bits with a sign that the schema has for it


@dataclass(frozen=True)
class Processor:
    """The first one of /proc/cpuinfo."""

    vendor_id: str = ""
    highest_level: int = 0
    family: int = 0
    model: int = 0
    stepping: int = 0
    flags: frozenset[str] = frozenset()


def processor_of(cpu: Mapping[str, str]) -> Processor:
    """Of a block of /proc/cpuinfo; what is not there or not a number is 0."""
    return Processor(
        vendor_id=cpu.get("vendor_id", ""),
        highest_level=_number(cpu, "cpuid level"),
        family=_number(cpu, "cpu family"),
        model=_number(cpu, "model"),
        stepping=_number(cpu, "stepping"),
        flags=frozenset(cpu.get("flags", "").split()),
    )


def cpu_features(cpu: Processor) -> list[Any]:
    """None of a processor without flags: it is not an x86."""
    if not cpu.flags:
        return []
    first, second, third = (_text_register(cpu.vendor_id, at) for at in (0, 4, 8))
    return [
        _level(0, eax=cpu.highest_level, ebx=first, edx=second, ecx=third),
        _level(1, eax=_signature(cpu), ecx=_register(cpu, _LEVEL_1_ECX), edx=_register(cpu, _LEVEL_1_EDX)),
        _level(_EXTENDED, ecx=_register(cpu, _EXTENDED_ECX), edx=_register(cpu, _EXTENDED_EDX)),
    ]


def _level(level: int, **registers: int) -> Any:
    values = {name: bits(registers.get(name, 0)) for name in ("eax", "ebx", "ecx", "edx")}
    return vim.host.CpuIdInfo(level=level, **values)


def bits(value: int) -> str:
    """As the schema writes a register: 0000:0000:…, the highest bit first."""
    digits = f"{value:032b}"
    return ":".join(digits[at : at + 4] for at in range(0, 32, 4))


def _signature(cpu: Processor) -> int:
    """Family and model have an extension of their own from family 15, and model 16, on."""
    family, extended_family = min(cpu.family, 15), max(cpu.family - 15, 0)
    return extended_family << 20 | (cpu.model >> 4) << 16 | family << 8 | (cpu.model & 15) << 4 | cpu.stepping


def _text_register(text: str, at: int) -> int:
    return int.from_bytes(text.encode()[at : at + 4].ljust(4, b"\0"), "little")


def _register(cpu: Processor, names: Mapping[str, int]) -> int:
    return sum(1 << bit for name, bit in names.items() if name in cpu.flags)


def _number(cpu: Mapping[str, str], key: str) -> int:
    value = cpu.get(key, "")
    return int(value) if value.isdigit() else 0


def _bits(start: int, names: str) -> dict[str, int]:
    """From that bit on, one name a bit; "-" where the kernel has none."""
    return {name: start + at for at, name in enumerate(names.split()) if name != "-"}


_LEVEL_1_EDX: Final = _bits(0, """
    fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov
    pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe
""")  # fmt: skip
_LEVEL_1_ECX: Final = _bits(0, """
    pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm
    - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand hypervisor
""")  # fmt: skip
_EXTENDED_EDX: Final = _bits(11, """
    syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow
""")
_EXTENDED_ECX: Final = _bits(0, """
    lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp
    fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx
""")
