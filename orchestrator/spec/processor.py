"""The processor: its model and core count, and features that change the answers of quantised models.

On x86 without dot-product instructions (VNNI), ONNX Runtime adds the products of two pairs of bytes in 16 bits,
and a sum over 32,767 stays there: eight-bit weights times eight-bit activations then come out wrong, silently.
Seven-bit weights (-64 to 64) cannot reach that sum: 2 x 255 x 64 = 32,640.
"""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Linux's names of the instructions that multiply bytes into 32-bit sums at once; one of them is enough.
DOT_PRODUCT_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
# The largest weight whose products with bytes fit 16 bits in pairs, on any processor.
LARGEST_SAFE_WEIGHT = 64
CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "AMD64", "i686")
# Features by which ONNX Runtime chooses kernels whose answers may differ.
_DECIDING_FLAGS = ("sse4_1", "avx", "avx2", "fma", "avx512f", *DOT_PRODUCT_FLAGS, "asimd", "asimddp", "i8mm")


def core_count() -> int:
    """How many cores this process may use."""
    # A container often has fewer than the machine; only Linux says so.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def processor_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """All flags that Linux lists for the first processor; empty where it lists none."""
    return frozenset(_first_listed(cpuinfo, ("flags", "Features")).split())


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """The model that Linux gives for the first processor; elsewhere its architecture."""
    return (
        _first_listed(cpuinfo, ("model name", "Model")) or platform.processor() or platform.machine() or "unknown"
    )


def _first_listed(cpuinfo: Path, names: Sequence[str]) -> str:
    """What the first line with one of these names says; nothing where there is none."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    pairs = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in pairs if name.strip() in names), "")


def instruction_sets(flags: Iterable[str]) -> tuple[str, ...]:
    """The flags among these by which answers may differ, in a fixed order."""
    known = frozenset(flags)
    return tuple(flag for flag in _DECIDING_FLAGS if flag in known)


def members_lacking_flags(
    extra: Mapping[str, Any], flags: Iterable[str], *, machine: str | None = None
) -> list[str]:
    """Members of a plan that answer otherwise on a processor with these flags than when they were recorded.

    "recorded_with" of the plan's `fit.extra` names the flags that members need; `machine` is as for `lacks_flags`.
    """
    recorded = extra.get("recorded_with")
    needed = recorded.get("processor_flags") if isinstance(recorded, dict) else None
    pairs = (
        [(name, one) for name, one in needed.items() if isinstance(one, list)] if isinstance(needed, dict) else []
    )
    known = list(flags)
    return [name for name, wanted in pairs if lacks_flags(wanted, known, machine=machine)]


def lacks_flags(needed: Iterable[str], flags: Iterable[str], *, machine: str | None = None) -> bool:
    """Whether a processor lacks what a member needs: it has none of the given flags.

    Args:
        needed: a manifest's `processor_flags`, one of which is enough; with none, nothing is lacking.
        flags: the processor's; empty where they are unknown, and nothing is said to be lacking then.
        machine: its architecture as in `platform.machine()`; processors other than x86 add exactly.
    """
    wanted, known = frozenset(needed), frozenset(flags)
    is_x86 = (platform.machine() if machine is None else machine) in _X86
    return bool(wanted) and bool(known) and is_x86 and not wanted & known
