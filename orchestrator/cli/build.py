"""`committee build`: from trained models and labelled rows to a certified cascade in a model repository."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.build_steps import Steps, committee_program, export_program
from orchestrator.cli.console import print_json
from orchestrator.errors import DataError
from orchestrator.spec import manifest_from_path
from orchestrator.spec.faults import NAME

# What is asked of a plan where nobody says.
EPSILON = 0.01


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a member comes from.

    Args:
        source: what `export member` takes; None for a member that lies in the repository.
        name: of the member; None leaves it to the export.
    """

    source: str | None
    name: str | None


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
        str,
        typer.Option(help="Labelled rows: a folder with a sub-folder of pictures per class, .npz, .parquet."),
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
    as_json: Annotated[bool, typer.Option("--json", help="Print every step and its result as JSON.")] = False,
) -> None:
    """Export models, record what they say of labelled rows, plan and certify a cascade, render and check it.

    Every step is a command of its own, printed before it runs: take one out, change it and go on by hand whenever
    this command's options do not reach. After an interruption or a fault the same command goes on where it
    stopped. Exit codes are those of the step that failed; 3 means that no cascade does what was asked.

    Example: committee build small.onnx large.onnx --data photos --epsilon 0.01 -o repository
    """
    origins = [_origin(text, output) for text in models]
    if len(origins) < 2:
        raise DataError("build", got="one model", expected="two or more: a cascade asks a cheap one first")
    if len(set(origins)) < len(origins):
        raise DataError("build", got="a model more than once", expected="different models")
    folder = Path("build") / name if work is None else work
    records, plan, report = folder / "records.npz", folder / "cascade.json", folder / "report"
    steps = Steps(total=_exports(origins) + 4, as_json=as_json)
    export = {"--mean": mean, "--std": std, "--resolution": resolution, "--image-px": image_px, "--dims": dims}
    members = _exported(steps, origins, output, options=_words(export))
    program = committee_program()
    recording = {"--class-map": class_map, "--labels-by-order": by_order, "--limit": limit, "--skip-bad": skip_bad}
    words = ["record", *members, "--data", data, "--repository", str(output), *_words(recording)]
    steps.run("record", "ask every member about every row", program, [*words, "-o", str(records)])
    if epsilon is None and min_accuracy is None and max_mean_cost_share is None:
        epsilon = EPSILON
    if epsilon is not None and reference is None:
        reference = _dearest(members, output)
    goal = {"--reference": reference, "--epsilon": epsilon, "--min-accuracy": min_accuracy}
    goal |= {"--max-mean-cost-share": max_mean_cost_share, "--delta": delta, "--gears": gears or None}
    words = ["plan", str(records), "--name", name, *_words(goal), "--repository", str(output)]
    steps.run("plan", "choose stages and thresholds on one half of the rows, certify them on the other", program,
              [*words, "--report", str(report), "-o", str(plan)])  # fmt: skip
    words = ["render", str(plan), "--repository", str(output), *_words({"--standalone": standalone})]
    steps.run("render", "write the cascade beside its members", program, words)
    steps.run("check", "look for whatever does not fit together", program, ["check", "--repository", str(output)])
    serve = f"{program.shown} serve --repository {output}"
    if as_json:
        print_json({"repository": str(output), "cascade": name, "members": members, "records": str(records),
                    "plan": str(plan), "report": str(report / "index.html"), "serve": serve,
                    "steps": steps.done})  # fmt: skip
        return
    typer.echo(f"Cascade: {output / name}\nReport:  {report / 'index.html'}\nServe:   {serve}")


def _origin(text: str, repository: Path) -> Origin:
    name, equals, model = text.partition("=")
    if not equals or Path(text).exists() or NAME.match(name) is None:
        name, model = "", text
    path = Path(model)
    if path.is_file():
        return Origin(source=f"onnx:{model}", name=name or None)
    if path.is_dir():
        return Origin(source=f"hf:{model}", name=name or None)
    if NAME.match(model) is not None and (repository / model / "manifest.json").is_file():
        if name:
            raise DataError(f"model {text}", got="another name for a member of the repository", expected=model)
        return Origin(source=None, name=model)
    if ":" not in model and (path.suffix or "/" in model):
        raise DataError(
            f"model {model}",
            got="no such file",
            expected=f"an .onnx file, a folder, a source such as hf:ID, or a member of {repository}",
        )
    return Origin(source=model, name=name or None)


def _exports(origins: list[Origin]) -> int:
    """How many commands export them."""
    return len(_named(origins)) + bool(_unnamed(origins))


def _named(origins: list[Origin]) -> list[Origin]:
    return [one for one in origins if one.source is not None and one.name is not None]


def _unnamed(origins: list[Origin]) -> list[Origin]:
    return [one for one in origins if one.source is not None and one.name is None]


def _exported(steps: Steps, origins: list[Origin], repository: Path, *, options: list[str]) -> list[str]:
    """Exports what is not in the repository, and gives the members' names in the order of the models."""
    if not _exports(origins):
        return [str(one.name) for one in origins]
    program = export_program()
    ending = ["-o", str(repository), *options]
    made: list[str] = []
    # Together, so that all take images of one size; one with a name of its own goes alone.
    if together := _unnamed(origins):
        sources = [str(one.source) for one in together]
        result = steps.run("export", "make members of the models, and prove them", program,
                           ["member", *sources, *ending], parsed=True)  # fmt: skip
        made = list(result["members"])
        _say_members(result["members"], repository)
    for one in _named(origins):
        words = ["member", str(one.source), "--name", str(one.name), *ending]
        result = steps.run("export", f"make member {one.name}, and prove it", program, words, parsed=True)
        _say_members(result["members"], repository)
    names = iter(made)
    return [one.name or next(names) for one in origins]


def _say_members(members: dict[str, str], repository: Path) -> None:
    for name, what in members.items():
        typer.echo(f"{repository / name}: {what}", err=True)


def _dearest(members: Iterable[str], repository: Path) -> str:
    """The member that costs most per row, by its manifest."""
    return max(members, key=lambda name: manifest_from_path(repository / name / "manifest.json").macs)


def _words(options: Mapping[str, object]) -> list[str]:
    """Options as words of a command line; those that nobody gave are left out."""
    words: list[str] = []
    for option, value in options.items():
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, str(value)]
    return words
