"""The glyphs members by name: six sizes with two seeds each, and one network at two resolutions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import RepositoryError

REPOSITORY = Path("perf/glyphs/model_repository")
SELF = ("glyphs_self_low", "glyphs_self_high")
MEMBERS = (*(f"glyphs_b{size}_s{seed}" for size in range(6) for seed in range(2)), *SELF)
_OF_FAMILY = re.compile(r"(?P<size>.+)_s\d+$")


@dataclass(frozen=True, kw_only=True)
class MemberGroups:
    """Members sorted by what they are.

    Args:
        sizes: members of one architecture that differ in their seed, the smallest architecture first.
        pair: one network at a low and at a high resolution; empty where there is none.
    """

    sizes: tuple[tuple[str, ...], ...]
    pair: tuple[str, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """All but the pair."""
        return tuple(name for size in self.sizes for name in size)


def family_from_names(names: Sequence[str]) -> MemberGroups:
    """Sorts members by their names, as `MEMBERS` has them."""
    sizes: dict[str, list[str]] = {}
    for name in sorted(names):
        found = _OF_FAMILY.match(name)
        if found is not None:
            sizes.setdefault(found["size"], []).append(name)
    pair = tuple(name for end in ("_self_low", "_self_high") for name in names if name.endswith(end))
    return MemberGroups(sizes=tuple(map(tuple, sizes.values())), pair=pair if len(pair) == 2 else ())


def require_members(repository: Path, names: Sequence[str]) -> None:
    """Refuses a repository that lacks some.

    Raises:
        RepositoryError: naming them, and the command that makes them.
    """
    missing = [name for name in names if not (repository / name / "manifest.json").is_file()]
    if missing:
        few = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise RepositoryError(
            f"members in {repository}",
            got=f"{len(missing)} of {len(names)} missing ({few})",
            expected="all of them",
            fix="python -m perf glyphs",
        )
