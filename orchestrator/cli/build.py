"""`committee build`: from trained models and labelled rows to a certified cascade in a model repository."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.build_steps import (
    BuildFiles,
    GivenModel,
    Steps,
    check_given,
    check_members,
    committee_program,
    export_program,
    models_from_words,
)
from orchestrator.cli.console import print_json
from orchestrator.errors import CommitteeError, DataError
from orchestrator.planner.goal import ENSEMBLE, Goal
from orchestrator.spec import CascadeSpec, cascade_from_path, manifest_from_path
from orchestrator.spec.manifest import MANIFEST

# The goal where no option names one.
EPSILON = 0.01
StepArgs = Annotated[
    str, typer.Option(metavar="WORDS", help="More options for that step, as one word.", show_default=False)
]


def build(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Two or more: an .onnx file, a folder of transformers, whatever else `python -m export member` "
            "takes, or a member that lies in the repository. NAME=MODEL names the member.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str, typer.Option(help="Labelled rows: a folder with a sub-folder of pictures per class, .npz, .parquet.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model repository to write into.")] = Path(
        "model_repository"
    ),
    name: Annotated[str, typer.Option(help="Name of the cascade.")] = "cascade",
    work: Annotated[
        Path | None, typer.Option(help="Folder for records, plan and report; build/NAME if none.")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            help=f"Cheapest cascade at most this much less accurate than --reference; {EPSILON} if no goal."
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Member to hold it against, or `ensemble`; the dearest if none is named.")
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Cheapest cascade with this accuracy.")] = None,
    max_mean_cost_share: Annotated[
        float | None, typer.Option(help="Most accurate cascade for this share of the dearest member's cost.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Chance that the guarantee does not hold.")] = 0.05,
    gears: Annotated[int, typer.Option(min=0, max=8, help="Cheaper thresholds to shift to under load.")] = 0,
    mean: Annotated[
        str | None,
        typer.Option(help="Per channel on a 0-1 scale, for models that take no uint8 images: 0.485,0.456,0.406."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Per channel on a 0-1 scale.")] = None,
    resolution: Annotated[int | None, typer.Option(min=8, max=4096, help="Side the networks see.")] = None,
    image_px: Annotated[
        int | None, typer.Option(min=8, max=4096, help="Side of the uint8 images the cascade takes.")
    ] = None,
    dims: Annotated[
        str | None, typer.Option(help="Dims of a row where a model leaves them free: 3,32,32.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Text file with the models' class names, a line each, in their order.")
    ] = None,
    class_map: Annotated[
        Path | None, typer.Option(help="Text file: what the data calls each class, in the models' order.")
    ] = None,
    by_order: Annotated[
        bool, typer.Option("--labels-by-order", help="Take sorted class names for the classes in order.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows, spread evenly.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be read.")] = False,
    standalone: Annotated[
        bool, typer.Option("--standalone", help="Put the runtime beside the cascade, as images of Triton need it.")
    ] = False,
    export_args: StepArgs = "",
    record_args: StepArgs = "",
    plan_args: StepArgs = "",
    render_args: StepArgs = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print every step and its result as JSON.")] = False,
) -> None:
    """Export models, record what they say of labelled rows, plan and certify a cascade, render and check it.

    Every step is a command of its own, printed before it runs; --plan-args "--gears 3" and the like give it more
    options than this command has. After an interruption or a fault the same command goes on where it
    stopped. Exit codes are those of the step that failed; 3 means that no cascade does what was asked.

    Example: committee build small.onnx large.onnx --data photos --epsilon 0.01 -o repository
    """
    files = BuildFiles(repository=output, name=name, work=Path("build") / name if work is None else work)
    export = _words({"--mean": mean, "--std": std, "--resolution": resolution, "--image-px": image_px,
                     "--dims": dims, "--labels": labels})  # fmt: skip
    given = models_from_words(models, output)
    more = {"export": _split("--export-args", export_args), "record": _split("--record-args", record_args),
            "plan": _split("--plan-args", plan_args), "render": _split("--render-args", render_args)}  # fmt: skip
    export += more["export"]
    check_given(given, files, data=data, export=export)
    for option, path in (("--labels", labels), ("--class-map", class_map)):
        if path is not None and not path.is_file():
            raise DataError(option, got=f"{path}, which is no file", expected="a text file")
    if epsilon is None and min_accuracy is None and max_mean_cost_share is None:
        epsilon = EPSILON
    if min_accuracy is not None and (epsilon is not None or reference is not None):
        raise DataError("--min-accuracy", got="--epsilon or --reference beside it", expected="one goal")
    # Refused now rather than after hours of recording.
    Goal(
        min_accuracy=min_accuracy,
        reference=reference or (None if epsilon is None else ENSEMBLE),
        epsilon=epsilon,
        max_mean_cost=max_mean_cost_share,
        delta=delta,
    )
    goal = {"--min-accuracy": min_accuracy, "--epsilon": epsilon, "--max-mean-cost-share": max_mean_cost_share}
    goal |= {"--delta": delta, "--gears": gears or None}
    rows = {"--class-map": class_map, "--labels-by-order": by_order, "--limit": limit, "--skip-bad": skip_bad}
    steps = Steps(total=4 + any(not one.is_member for one in given), as_json=as_json)
    try:
        members = _exported(steps, given, files, options=export)
        check_members(members, files, data=data, reference=reference)
        _recorded(steps, members, files, options=["--data", data, *_words(rows), *more["record"]])
        if epsilon is not None:
            reference = reference or _dearest(members, output)
        _planned(steps, files, options=[*_words({"--reference": reference, **goal}), *more["plan"]])
        _rendered(steps, files, options=[*_words({"--standalone": standalone}), *more["render"]])
    except (CommitteeError, KeyboardInterrupt):
        if as_json:
            print_json({"steps": steps.done, "failed": steps.running})
        raise
    _finished(steps, files, members, as_json=as_json)


def _exported(steps: Steps, given: list[GivenModel], files: BuildFiles, *, options: list[str]) -> list[str]:
    """Exports what is not in the repository, and gives the members' names in the order of the models."""
    sources = [one.word for one in given if not one.is_member]
    if not sources:
        return [one.word for one in given]
    # In one command, so that all take images of one size.
    words = ["member", *sources, "-o", str(files.repository), *options]
    result = steps.run(
        "export", "make members of the models, and prove them", export_program(), words, parsed=True
    )
    for name, done in result["members"].items():
        typer.echo(f"{files.repository / name}: {done}", err=True)
    made = iter(result["members"])
    return [one.word if one.is_member else next(made) for one in given]


def _recorded(steps: Steps, members: list[str], files: BuildFiles, *, options: list[str]) -> None:
    words = ["record", *members, "--repository", str(files.repository), *options, "-o", str(files.records)]
    steps.run("record", "ask every member about every row", committee_program(), words)


def _planned(steps: Steps, files: BuildFiles, *, options: list[str]) -> None:
    words = ["plan", str(files.records), "--name", files.name, *options, "--repository", str(files.repository)]
    what = "choose stages and thresholds on one half of the rows, certify them on the other"
    steps.run("plan", what, committee_program(), [*words, "--report", str(files.report), "-o", str(files.plan)])


def _rendered(steps: Steps, files: BuildFiles, *, options: list[str]) -> None:
    where = ["--repository", str(files.repository)]
    words = ["render", str(files.plan), *where, *options]
    steps.run("render", "write the cascade beside its members", committee_program(), words)
    steps.run("check", "look for whatever does not fit together", committee_program(), ["check", *where])


def _finished(steps: Steps, files: BuildFiles, members: list[str], *, as_json: bool) -> None:
    serve = f"{committee_program().shown} serve --repository {shlex.quote(str(files.repository))}"
    notes = _notes(cascade_from_path(files.plan))
    page = files.report / "index.html"
    if as_json:
        print_json({"repository": str(files.repository), "cascade": files.name, "members": members,
                    "records": str(files.records), "plan": str(files.plan), "report": str(page), "serve": serve,
                    "notes": notes, "steps": steps.done, "failed": None})  # fmt: skip
        return
    typer.echo(f"Cascade: {files.repository / files.name}\nReport:  {page}\nServe:   {serve}")
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _notes(spec: CascadeSpec) -> list[str]:
    """Notes for somebody who reads the last lines only."""
    if len(spec.stages) > 1:
        return []
    asked = " and ".join(member.name for member in spec.members)
    return [f"no cascade does what was asked, so every row is answered by {asked}; the plan's lines above say why"]


def _split(option: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise DataError(option, got=repr(text), expected="options as in a shell", fix=str(error)) from error


def _dearest(members: Iterable[str], repository: Path) -> str:
    """The member that costs most per row, by its manifest."""
    return max(members, key=lambda name: manifest_from_path(repository / name / MANIFEST).macs)


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line; those that nobody gave are left out."""
    words: list[str] = []
    for option, value in options.items():
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, str(value)]
    return words
