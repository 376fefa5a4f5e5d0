"""A member of lower precision from an fp32 one: converted, compared, and written with its own manifest."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from export.members import (
    EXTERNAL_OVER_BYTES,
    MODEL_FILE,
    ReadMember,
    check_made_by,
    is_current,
    manifest_in,
    member_from_repository,
    output_kind_option,
    packed,
    write_member,
)
from export.output import rename_classes
from export.parity import member_rows, member_rows_from_path
from export.precision import MIN_AGREEMENT
from export.precision.convert import agreement_of, fp16_from, int8_from, rounding_from, tiny_weights_of
from export.precision.overflow import processor_flags_of
from export.proof import json_of, prove_against_installed, refresh_member
from export.tensor_rows import AnyRows, TensorRows
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import all_graphs
from orchestrator.repository.files import sha256_of_path
from orchestrator.spec import Manifest
from orchestrator.spec.shares import evenly_spread

COMMAND = "precision"
PRECISIONS = ("fp16", "int8")
FORMAT = 2
# Fewest and most rows that are made up where none are given; large networks get few: 16 at 190 GMACs a row.
MADE_UP_ROWS = (16, 256)
_MADE_UP_MACS = 3e12
# Most rows that are compared: more hardly narrow the interval.
_COMPARED_ROWS = 2048
# More rows hardly move the least and greatest value seen, and each costs a pass through the network.
CALIBRATION_ROWS = 512


class ComparisonRows(NamedTuple):
    """Rows to take ranges from, empty for fp16, others to compare on, and their source in words."""

    calibrate: AnyRows
    compare: AnyRows
    source: str


def export_precision(
    repository: Path,
    member: str,
    *,
    to: str,
    calibrate: Path | None = None,
    output: Path | None = None,
    name: str | None = None,
    min_agreement: float | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[str, str]:
    """Makes a member of lower precision from an fp32 one, unless it is there already.

    Args:
        repository: that holds the fp32 member.
        member: its name.
        to: "fp16" or "int8".
        calibrate: rows as the member takes them, .npy or .npz; int8 needs them, and both are compared on them.
        output: repository to write into; None for the same.
        name: of the new member; None for the old one's with the precision behind it.
        min_agreement: smallest share of rows with the same top-1; None is MIN_AGREEMENT, random weights apart.
        force: make it again, also over another exported member.
        progress: told what is being done.

    Returns:
        the new member's name, and "exported", "up to date", "proven" where it was up to date but not yet proven
        on all that the fp32 member is, or "named" where only the names of its classes are others.

    Raises:
        ExportError: the member cannot be converted, agrees too seldom with the fp32 one, or the name is taken;
            what was there before is untouched.
        DataError: the rows cannot be used.
        RepositoryError: a repository cannot be read or written.
    """
    target, new = output or repository, name or f"{member}_{to}"
    require_sense(member, to, calibrate)
    original = manifest_in(repository, member)
    if original.precision != "fp32":
        fix = f"name {original.options.get('from') or 'the member it was made from'}"
        got = f"an {original.precision} member"
        raise ExportError(f"{to} of {member}", got=got, expected="an fp32 one", fix=fix)
    if target.resolve() == repository.resolve() and new == member:
        raise ExportError("name of the new member", got=new, expected="another than the fp32 member's")
    check_made_by(COMMAND, target, new, force=force)
    options = _options_of(original, to=to, calibrate=calibrate)
    if min_agreement is None and not original.random_weights:
        min_agreement = MIN_AGREEMENT
    if not force and is_current(target / new, options):
        # The member may have been made with a lower limit.
        _require_agreement(manifest_in(target, new), min_agreement)
        renamed = rename_classes(target, new, original.labels)
        versions = tuple(original.runtimes)
        return new, refresh_member(target, new, versions=versions, renamed=renamed, progress=progress)
    progress(f"{new}: reading {member}")
    read = member_from_repository(repository, member)
    rows = rows_for(original, read.model.graph, to=to, calibrate=calibrate)
    progress(f"{new}: converting")
    model = fp16_from(read.model) if to == "fp16" else int8_from(read.model, rows.calibrate)
    with packed(model, target) as stored:
        progress(f"{new}: comparing with {member}")
        manifest = dataclasses.replace(
            _compared(read, repository / member / original.file, model, stored.path, rows, to=to),
            name=new,
            sha256=stored.sha256,
            options=options,
            data_files={f"1/{file}": digest for file, digest in stored.data_files.items()},
        )
        _require_agreement(manifest, min_agreement)
        proofs = prove_against_installed(
            f"{to} of {member}",
            stored.path,
            rows.compare,
            versions=tuple(original.runtimes),
            agreement=manifest.agreement,
            progress=lambda text: progress(f"{new}: {text}"),
        )
        write_member(target, stored, dataclasses.replace(manifest, runtimes=json_of(proofs)))
    return new, "exported"


def _require_agreement(made: Manifest, least: float | None) -> None:
    """Refuses a member whose top-1 differs from its fp32 original's on too many rows.

    The share is compared as it was found: the lower end of its interval is below 0.9 on every comparison of less
    than 35 rows, where all agree, and the upper end spares members that changed every eighth.
    """
    share, (low, high) = made.agreement["same_top1"], made.agreement["same_top1_ci95"]
    if least is None or share >= least:
        return
    raise ExportError(
        f"{made.precision} member {made.name}",
        got=f"the same top-1 as {made.agreement['with']} on {share:.1%} of {made.agreement['rows']} rows "
        f"(95 % interval {low:.1%} to {high:.1%}; {made.agreement['rows_from']})",
        expected=f"at least {least:.1%}",
        fix="calibrate on more rows like those it will be asked, keep it in fp32, or lower `min_agreement`",
    )


def _compared(
    read: ReadMember, original_file: Path, model: onnx.ModelProto, stored: Path, rows: ComparisonRows, *, to: str
) -> Manifest:
    """The fp32 member's manifest, save for what the conversion changed, and how far both agree.

    Costs stay those of fp32: a multiplication is one whatever its width. What half precision rounds up to its
    smallest value is noted with the agreement.
    """
    original = read.manifest
    stand_in, computed = _comparable(model, stored)
    agreement = agreement_of(stand_in, original_file, rows.compare)
    found: dict[str, Any] = {
        "with": original.name,
        "with_sha256": original.sha256,
        **dataclasses.asdict(agreement),
        "same_top1_ci95": list(agreement.same_top1_ci95),
        "rows_from": rows.source,
        "computed": computed,
    }
    if to == "fp16":
        found["tiny_weights"] = tiny_weights_of(read.model)
    else:
        found["calibration_rows"] = len(rows.calibrate)
    parity = {name: found[name] for name in ("rows", "max_abs", "mean_abs", "same_top1")}
    return dataclasses.replace(
        original,
        file=MODEL_FILE,
        source=f"{original.source}; python -m export precision {original.name} --to {to}",
        precision=to,
        parity={"against": f"{original.name} in fp32", **parity},
        agreement=found,
        processor_flags=processor_flags_of(model),
        versions={**original.versions, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    )


def _comparable(model: onnx.ModelProto, stored: Path) -> tuple[bytes | Path, str]:
    """The model to compare in place of a stored one, and how it computes, in words."""
    half = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in model.graph.initializer)
    inside = next(all_graphs(model.graph.node), None) is not None
    # In fp32 the weights take twice their room, and a graph in memory must stay below 2 GB.
    if not half or inside or 2 * stored.stat().st_size > EXTERNAL_OVER_BYTES:
        return stored, "as ONNX Runtime does on a CPU" + (", in fp32 between fp16 weights" if half else "")
    return rounding_from(model).SerializeToString(), "rounded to fp16 after every operation, as a GPU does"


def _options_of(original: Manifest, *, to: str, calibrate: Path | None) -> dict[str, Any]:
    """What decides the new member's file."""
    if calibrate is not None and not calibrate.is_file():
        raise ExportError(f"rows of {calibrate}", got="no such file", expected="an .npy or .npz of rows")
    return {
        "command": COMMAND,
        "format": FORMAT,
        "from": original.name,
        "from_sha256": original.sha256,
        **output_kind_option(original),
        "to": to,
        "rows_sha256": None if calibrate is None else sha256_of_path(calibrate),
    }


def rows_for(original: Manifest, graph: onnx.GraphProto, *, to: str, calibrate: Path | None) -> ComparisonRows:
    """The rows to calibrate and to compare with.

    Of a file of rows every fourth is kept for comparing, so that int8 is not judged on what it was fitted to.

    Raises:
        DataError: the file cannot be used.
    """
    if calibrate is None:
        low, high = MADE_UP_ROWS
        count = int(min(high, max(low, _MADE_UP_MACS // max(original.macs, 1))))
        made = member_rows(original, lambda: graph, count)
        return ComparisonRows(made[:0], made, "made up")
    rows = member_rows_from_path(calibrate, original)
    arrays = list(rows.arrays.values()) if isinstance(rows, TensorRows) else [rows]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(one).tobytes() for one in arrays)).hexdigest()
    source = f"{calibrate.name} (rows of sha256 {digest[:12]})"
    if to == "fp16":
        return ComparisonRows(rows[:0], rows[evenly_spread(len(rows), _COMPARED_ROWS)], source)
    what = f"calibration rows of {calibrate}"
    if len(rows) < 2:
        raise ExportError(what, got=f"{len(rows)} row", expected="at least 2")
    if all((one == one[0]).all() for one in arrays):
        raise ExportError(what, got="one row repeated", expected="rows that differ")
    is_kept = np.arange(len(rows)) % 4 == 1
    fitted, kept = rows[~is_kept], rows[is_kept]
    return ComparisonRows(
        fitted[evenly_spread(len(fitted), CALIBRATION_ROWS)],
        kept[evenly_spread(len(kept), _COMPARED_ROWS)],
        f"every fourth of {source}",
    )


def require_sense(member: str, to: str, calibrate: Path | None) -> None:
    """Raises ExportError for an unknown precision, or int8 without rows."""
    if to not in PRECISIONS:
        raise ExportError("`to`", got=to, expected=" or ".join(PRECISIONS))
    if to == "int8" and calibrate is None:
        raise ExportError(
            f"int8 of {member}", got="no calibration rows",
            expected="some hundred rows like those it will be asked",
            fix="name a file of them with `calibrate` rows.npy",
        )  # fmt: skip
