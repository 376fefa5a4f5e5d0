"""Several members at once, so that they fit each other: one image size, one set of classes, one name each."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from export.labels import require_same_classes
from export.member import MemberExport, check_source, export_member
from export.precision.derive import export_precision, require_sense
from export.sources import ExportOptions, identify
from orchestrator.errors import CommitteeError, ExportError
from orchestrator.spec import Manifest, manifest_from_path
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.validation import NAME


def member_exports(
    sources: Sequence[str],
    options: ExportOptions,
    *,
    resolutions: Sequence[int | None] = (None,),
    name: str | None = None,
    image_px: int | None = None,
) -> list[MemberExport]:
    """The members that sources and resolutions give; no weights are read yet.

    Args:
        sources: as given, SOURCE or NAME=SOURCE.
        options: that all share.
        resolutions: sides the networks see; None for the one asked for, or their own.
        name: of the only member.
        image_px: side of the committee's images.

    Raises:
        ExportError: a source is not there, or two members would share a name.
    """
    if name is not None and len(sources) * len(resolutions) > 1:
        raise ExportError("`name`", got=f"{len(sources) * len(resolutions)} members", expected="one")
    if name is not None and not NAME.match(name):
        raise ExportError("`name`", got=name, expected="letters, digits, '_', '.' and '-'")
    plans = []
    for text in sources:
        own_name, source = _named_source(text)
        for side in resolutions:
            one = dataclasses.replace(options, resolution_px=side or options.resolution_px)
            found = identify(source, one)
            made = own_name or found.name
            made = f"{made}_{side}" if len(resolutions) > 1 else made
            plans.append(
                MemberExport(
                    name=name or made,
                    source=found,
                    options=one,
                    image_px=None if image_px is None else (image_px, image_px),
                )
            )
    names = [plan.name for plan in plans]
    twice = sorted({word for word in names if names.count(word) > 1})
    if twice:
        raise ExportError(
            "members",
            got=f"{', '.join(twice)} twice",
            expected="different names",
            fix="name them: NAME=SOURCE",
        )
    return plans


def _named_source(text: str) -> tuple[str | None, str]:
    """The name that NAME=SOURCE gives, if it does, and the source."""
    name, equals, source = text.partition("=")
    return (name, source) if equals and NAME.match(name) is not None else (None, text)


def export_committee(
    repository: Path,
    plans: Sequence[MemberExport],
    *,
    precisions: Sequence[str] = ("fp32",),
    calibrate: Path | None = None,
    min_agreement: float | None = None,
    force: bool,
    progress: Callable[[str], None],
) -> dict[str, str]:
    """Exports the members of one committee.

    Args:
        repository: model repository to write into.
        plans: of the members.
        precisions: each gives a member of its own; the fp32 one, which the others are made from, is always there.
        calibrate: rows for int8.
        min_agreement: see `export_precision`.
        force: export again, also over models that were not exported here.
        progress: told what is being done.

    Returns:
        member name -> "exported", "proven", "named" or "up to date".

    Raises:
        ExportError: a member cannot be exported, or does not fit those before it; the ones before stay.
        RepositoryError: the repository cannot be written.
    """
    for plan in plans:
        check_source(repository, plan, force=force)
    lower = [word for word in precisions if word != "fp32"]
    for word in lower:
        require_sense(plans[0].name, word, calibrate)
    done: dict[str, str] = {}
    first: Manifest | None = None
    for plan in with_one_image_size(plans):
        try:
            done[plan.name] = export_member(repository, plan, force=force, progress=progress, beside=first)
            manifest = manifest_from_path(repository / plan.name / MANIFEST)
            first = first or manifest
            # A member that is up to date may be from a committee with other classes.
            require_same_classes(manifest, first)
            for word in lower:
                name, what = export_precision(
                    repository,
                    plan.name,
                    to=word,
                    calibrate=calibrate,
                    min_agreement=min_agreement,
                    force=force,
                    progress=progress,
                )
                done[name] = what
        except CommitteeError as error:
            raise _with_what_stays(error, done) from error
    return done


def _with_what_stays(error: CommitteeError, done: dict[str, str]) -> CommitteeError:
    """The error, with the members that were exported before it and stay."""
    written = [name for name, what in done.items() if what == "exported"]
    if not written:
        return error
    fix = f"{error.fix}; " if error.fix else ""
    return ExportError(
        error.what, got=error.got, expected=error.expected, fix=f"{fix}exported before it: {', '.join(written)}"
    )


def with_one_image_size(plans: Sequence[MemberExport]) -> list[MemberExport]:
    """The plans with the committee's image size filled in: the largest that any of them needs."""
    if all(plan.image_px is not None for plan in plans):
        return list(plans)
    needed = [size for plan in plans if (size := plan.source.image_px()) is not None]
    if not needed:
        return list(plans)
    largest = (max(height for height, _ in needed), max(width for _, width in needed))
    return [dataclasses.replace(plan, image_px=plan.image_px or largest) for plan in plans]
