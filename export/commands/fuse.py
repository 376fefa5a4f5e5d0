"""`python -m export fuse`."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from export.commands.console import needs, progress_on
from orchestrator.errors import ExportError
from orchestrator.spec import Member, cascade_from_path, json_from_cascade, manifest_from_path
from orchestrator.spec.manifest import MANIFEST


def fuse(
    members: Annotated[
        list[str] | None, typer.Argument(metavar="MEMBER...", help="At least two.", show_default=False)
    ] = None,
    combine: Annotated[str | None, typer.Option(help="mean_logit or mean_prob.", show_default=False)] = None,
    weights: Annotated[str | None, typer.Option(help="One per member: 1,1,2. All 1 by default.")] = None,
    temperatures: Annotated[str | None, typer.Option(help="One per member: 1,1.5,1. All 1 by default.")] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="CASCADE_JSON", help="Fuse every stage of several members of this plan.")
    ] = None,
    plan_output: Annotated[
        Path | None,
        typer.Option("--plan-output", "-o", help="Where the new plan goes; <name>.json here by default."),
    ] = None,
    repository: Annotated[Path, typer.Option(help="Model repository that holds the members.")] = Path(
        "model_repository"
    ),
    output: Annotated[
        Path | None, typer.Option("--output", help="Repository for the fused members; the same by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the fused member, or of the new plan.")] = None,
    allow_whole_failure: Annotated[
        bool,
        typer.Option(
            "--allow-whole-failure", help="Fuse stages too that may answer without one of their members."
        ),
    ] = False,
    force: Annotated[bool, typer.Option(help="Fuse again, also over other exported members.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Merge members and their average into one member: one call to the server instead of several.

    Image processing that they share happens once. With --plan, every stage of several members becomes one fused
    member, and the new plan answers as the old one; `committee render` takes it from there.

    Examples:
        python -m export fuse digits_small digits_large --combine mean_logit --name digits_two
        python -m export fuse --plan cascade.json -o fused.json
    """
    start = time.monotonic()
    with needs("export fuse"), progress_on("reading members") as progress:
        made = _Fuse(repository=repository, output=output, name=name, force=force, progress=progress)
        if plan is None:
            _refuse_with("members", {"--plan-output": plan_output, "--allow-whole-failure": allow_whole_failure})
            said = made.members(_asked(members or [], weights, temperatures), combine)
        else:
            given = {"MEMBER": members, "--combine": combine, "--weights": weights, "--temperatures": temperatures}
            _refuse_with("--plan", given)
            said = made.plan(plan, plan_output, allow_whole_failure=allow_whole_failure)
    if as_json:
        typer.echo(json.dumps({**said, "seconds": round(time.monotonic() - start, 1)}))
        return
    _say(said, output or repository)


@dataclass(frozen=True, kw_only=True)
class _Fuse:
    """What both forms of the command share."""

    repository: Path
    output: Path | None
    name: str | None
    force: bool
    progress: Callable[[str], None]

    def members(self, asked: tuple[Member, ...], combine: str | None) -> dict[str, Any]:
        """Fuses the given members."""
        # Optional packages, and slow to import.
        from export.fusing import Fusion, fuse

        if combine is None or self.name is None:
            missing = [word for word, value in (("--combine", combine), ("--name", self.name)) if value is None]
            raise ExportError("fuse", got=f"no {' and no '.join(missing)}", expected="both, or --plan")
        fusion = Fusion(name=self.name, members=asked, combine=combine)
        manifest, what = fuse(
            self.repository, fusion, output=self.output, force=self.force, progress=self.progress
        )
        return {"members": {manifest.name: what}}

    def plan(self, old: Path, new: Path | None, *, allow_whole_failure: bool) -> dict[str, Any]:
        """Fuses a plan's stages and writes the new plan."""
        # Optional packages, and slow to import.
        from export.fusing import fuse_plan
        from orchestrator.repository.files import write_all

        spec = cascade_from_path(old)
        path = new or Path(f"{self.name or f'{spec.name}_fused'}.json")
        if path.resolve() == old.resolve():
            raise ExportError("--plan-output", got=str(path), expected="another file than the old plan")
        fused, done = fuse_plan(
            spec,
            self.repository,
            output=self.output,
            name=self.name,
            allow_whole_failure=allow_whole_failure,
            force=self.force,
            progress=self.progress,
        )
        written = write_all(path.parent, {path.name: json_from_cascade(fused)}).written
        return {"members": done, "plan": str(path), "plan_done": "written" if written else "up to date"}


def _say(said: dict[str, Any], repository: Path) -> None:
    for name, what in said["members"].items():
        manifest = manifest_from_path(repository / name / MANIFEST)
        text = f"{repository / name}: {what}; {manifest.macs / 1e9:.3g} GMACs a row, differs from its members by "
        text += f"at most {manifest.parity['max_abs']:.1e} on {manifest.parity['rows']} rows"
        typer.echo(text + ("; RANDOM WEIGHTS: its answers mean nothing" if manifest.random_weights else ""))
    if "plan" in said:
        typer.echo(f"{said['plan']}: {said['plan_done']}; render it with `committee render {said['plan']}`")


def _refuse_with(word: str, given: Mapping[str, object]) -> None:
    extra = [option for option, value in given.items() if value]
    if extra:
        raise ExportError(f"fuse with {word}", got=", ".join(extra), expected="either members or --plan")


def _asked(names: list[str], weights: str | None, temperatures: str | None) -> tuple[Member, ...]:
    pairs = zip(
        names, _numbers("--weights", weights, names), _numbers("--temperatures", temperatures, names), strict=True
    )
    # The manifest has the names of its tensors; only name, weight and temperature count here.
    return tuple(Member(name=name, output="scores", weight=w, temperature=t) for name, w, t in pairs)


def _numbers(option: str, text: str | None, names: list[str]) -> list[float]:
    if text is None:
        return [1.0] * len(names)
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ExportError(option, got=text, expected="numbers with commas between them") from error
    if len(numbers) != len(names):
        raise ExportError(option, got=f"{len(numbers)} numbers", expected=f"{len(names)}, one per member")
    return numbers
