"""Every network of the zoo, exported and asked in several versions of ONNX Runtime: a table for docs/export.md."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.blocks import END
from export.member import Plan, export_member
from export.runtimes.wheels import installed_version
from export.sources import Asked, identify
from export.zoo import ZOO
from orchestrator.errors import ExportError
from orchestrator.spec import manifest_from_path

# The oldest in a supported image, those between which answers were seen to change, and the newest two of 2026.
VERSIONS = ("1.19.2", "1.27.0", "1.28.0")
BEGIN = "<!-- begin: python -m export zoo --runtimes -->"
ROWS = 8


@dataclass(frozen=True, kw_only=True)
class FamilyRow:
    """One network in every version.

    Args:
        name: in the zoo.
        family: of its architecture.
        relative: version -> largest difference of a logit from PyTorch's, as a share of the largest logit.
        fault: why it was refused; None where it was not.
    """

    name: str
    family: str
    relative: dict[str, float]
    fault: str | None = None


def family_row(name: str, versions: Sequence[str], *, progress: Callable[[str], None]) -> FamilyRow:
    """Exports one network with random weights, and gives what its proof says.

    Args:
        name: in the zoo.
        versions: of ONNX Runtime, besides the installed one.
        progress: told what is being done.
    """
    asked = Asked(random_weights=True)
    plan = Plan(
        name=name,
        identity=identify(name, asked),
        asked=asked,
        parity_rows=ROWS,
        runtimes=tuple(version for version in versions if version != installed_version()),
    )
    family = ZOO[name].family
    with tempfile.TemporaryDirectory(prefix="committee-zoo-") as folder:
        repository = Path(folder) / "repository"
        try:
            export_member(repository, plan, force=False, progress=progress)
        except ExportError as error:
            return FamilyRow(name=name, family=family, relative={}, fault=str(error))
        manifest = manifest_from_path(repository / name / "manifest.json")
    # Both are of one comparison, so their ratio is the size of the largest logit.
    largest = manifest.parity["max_abs"] / manifest.parity["max_rel"] if manifest.parity["max_rel"] else 1.0
    found = {version: proof.get("max_abs") for version, proof in manifest.runtimes.items()}
    found[installed_version()] = manifest.parity["max_abs"]
    relative = {version: value / largest for version, value in found.items() if value is not None}
    return FamilyRow(name=name, family=family, relative=relative)


def block_from_rows(rows: Sequence[FamilyRow], versions: Sequence[str]) -> str:
    """The table as Markdown, marks included."""
    columns = [*dict.fromkeys([*versions, installed_version()])]
    lines = [
        f"| network | family | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for row in rows:
        if row.fault is not None:
            cells = [f"refused: {row.fault}", *[""] * (len(columns) - 1)]
        else:
            cells = [f"{row.relative[one]:.0e}" if one in row.relative else "not to be had" for one in columns]
        lines.append(f"| {row.name} | {row.family} | {' | '.join(cells)} |")
    return "\n".join([BEGIN, *lines, END])
