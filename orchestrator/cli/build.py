"""`committee build`: from trained models and labelled rows to a certified cascade in a model repository.

Every step is a command and a process of its own.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.console import print_json
from orchestrator.commandline import TEXT_ERRORS
from orchestrator.errors import CommitteeError, DataError, InfeasibleError, RepositoryError, interrupted_from
from orchestrator.planner.goal import ENSEMBLE, Goal
from orchestrator.rows.arrays import INSTALLED_WORDS, is_installed
from orchestrator.spec import cascade_from_path, manifest_from_path
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.manifest import MANIFEST
from orchestrator.spec.validation import NAME

# The goal where no option names one.
EPSILON = 0.01
# Endings of rows in one file.
STORED = (".npz", ".npy", ".parquet")
# How long a child may take to end by itself: Ctrl-C in a terminal reaches it, too, SIGTERM only this process.
OWN_END_S = 5.0
# How long it may take after SIGTERM, since it first keeps what is finished.
ASKED_END_S = 60.0
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
    work = work or Path("build") / name
    records, cascade, report = work / "records.npz", work / PLAN, work / "report"
    export = _words({"--mean": mean, "--std": std, "--resolution": resolution, "--image-px": image_px,
                     "--dims": dims, "--labels": labels})  # fmt: skip
    given = models_from_words(models, output)
    more = {"export": _split("--export-args", export_args), "record": _split("--record-args", record_args),
            "plan": _split("--plan-args", plan_args), "render": _split("--render-args", render_args)}  # fmt: skip
    export += more["export"]
    _check_given(given, name=name, work=work, data=data, export=export)
    for option, path in (("--labels", labels), ("--class-map", class_map)):
        if path is not None and not path.is_file():
            raise DataError(option, got=f"{path}, which is no file", expected="a text file")
    if epsilon is None and min_accuracy is None and max_mean_cost_share is None:
        epsilon = EPSILON
    if min_accuracy is not None and (epsilon is not None or reference is not None):
        raise DataError("--min-accuracy", got="--epsilon or --reference beside it", expected="one goal")
    # Refused now rather than after hours of recording.
    asked = reference or (None if epsilon is None else ENSEMBLE)
    share = max_mean_cost_share
    Goal(min_accuracy=min_accuracy, reference=asked, epsilon=epsilon, max_mean_cost=share, delta=delta)
    goal = {"--min-accuracy": min_accuracy, "--epsilon": epsilon, "--max-mean-cost-share": share}
    goal |= {"--delta": delta, "--gears": gears or None}
    rows = {"--class-map": class_map, "--labels-by-order": by_order, "--limit": limit, "--skip-bad": skip_bad}
    steps = _Steps(total=4 + any(not one.is_member for one in given), as_json=as_json)
    where = ["--repository", str(output)]
    try:
        members = _exported(steps, given, output, options=export)
        _check_members(members, output, name=name, data=data, reference=reference)
        words = [*members, *where, "--data", data, *_words(rows), *more["record"], "-o", str(records)]
        steps.run("record", "ask every member about every row", words)
        if epsilon is not None and reference is None:  # the dearest per row
            reference = max(members, key=lambda name: manifest_from_path(output / name / MANIFEST).macs)
        words = [str(records), "--name", name, *_words({"--reference": reference, **goal}), *more["plan"]]
        words += [*where, "--report", str(report), "-o", str(cascade)]
        what = "choose stages and thresholds on one half of the rows, certify them on the other"
        steps.run("plan", what, words)
        words = [str(cascade), *where, *_words({"--standalone": standalone}), *more["render"]]
        steps.run("render", "write the cascade beside its members", words)
        steps.run("check", "look for whatever does not fit together", where)
    except (CommitteeError, KeyboardInterrupt):
        if as_json:
            print_json({"steps": steps.done, "failed": steps.running})
        raise
    made = {"repository": str(output), "cascade": name, "members": members, "records": str(records),
            "plan": str(cascade), "report": str(report / "index.html")}  # fmt: skip
    _finished(steps, made)


@dataclass(frozen=True, kw_only=True)
class GivenModel:
    """One of the models given.

    Args:
        word: what `export member` is told, NAME=SOURCE or SOURCE; the name of a member that is there already.
        is_member: whether it lies in the repository already.
    """

    word: str
    is_member: bool


@dataclass(frozen=True, kw_only=True)
class _Launcher:
    """How a program of Committee is started, how a person types it in this folder, and variables it needs."""

    argv: tuple[str, ...]
    shown: str
    environment: dict[str, str] = field(default_factory=dict)


def _split(option: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise DataError(option, got=repr(text), expected="options as in a shell", fix=str(error)) from error


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line; those that nobody gave are left out."""
    words: list[str] = []
    for option, value in options.items():
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, str(value)]
    return words


def models_from_words(words: list[str], repository: Path) -> list[GivenModel]:
    """The models as they were given.

    Raises:
        DataError: one that is none, or one alone.
    """
    if len(words) < 2:
        raise DataError("build", got="one model", expected="two or more: a cascade asks a cheap one first")
    models = [_model(word, repository) for word in words]
    if len(set(models)) < len(models):
        raise DataError("build", got="a model more than once", expected="different models")
    return models


def _model(text: str, repository: Path) -> GivenModel:
    name, equals, model = text.partition("=")
    if not equals or Path(text).exists():
        name, model = "", text
    elif NAME.match(name) is None:
        expected = "NAME=MODEL with letters, digits, '_', '.' and '-' in the name"
        raise DataError(f"model {text!r}", got=f"the name {name!r}", expected=expected)
    if (member := _member_of(model, repository)) is not None:
        if name:
            raise DataError(f"model {text}", got="another name for a member of the repository", expected=member)
        return GivenModel(word=member, is_member=True)
    source = _source(model, repository)
    return GivenModel(word=f"{name}={source}" if name else source, is_member=False)


def _member_of(model: str, repository: Path) -> str | None:
    """The member of the repository that a name or a folder means."""
    path = Path(model)
    folder = path if path.is_dir() and path.resolve().parent == repository.resolve() else repository / model
    is_name = NAME.match(folder.name) is not None and folder.parent.resolve() == repository.resolve()
    return folder.name if is_name and not path.is_file() and (folder / MANIFEST).is_file() else None


def _source(model: str, repository: Path) -> str:
    """The source that `export member` takes for a model; what exists on disk is a path."""
    path = Path(model)
    if model and path.is_file():
        return f"onnx:{os.path.normpath(model)}"
    if model and path.is_dir():
        if not (path / "config.json").is_file():
            raise DataError(f"model {model}", got="a folder without config.json", expected="one of transformers")
        return f"hf:{os.path.normpath(model)}"
    if not model or (":" not in model and (path.suffix or "/" in model)):
        expected = f"an .onnx file, a folder, a source such as hf:ID, or a member of {repository}"
        raise DataError(f"model {model!r}", got="no such file", expected=expected)
    return model


def _check_given(given: list[GivenModel], *, name: str, work: Path, data: str, export: list[str]) -> None:
    """Refuses, before any work, what a later step would refuse."""
    if NAME.match(name) is None:
        raise DataError("--name", got=repr(name), expected="letters, digits, '_', '.' and '-'")
    taken = [one.word.partition("=")[0] for one in given if one.is_member or "=" in one.word]
    taken += [Path(one.word).stem.lower() for one in given if not one.is_member and "=" not in one.word]
    if name in taken:
        raise DataError("--name", got=f"{name}, a member", expected="another name for the cascade")
    if work.exists() and not work.is_dir():
        raise DataError("--work", got=f"{work}, a file", expected="a folder")
    path = Path(data)
    is_there = path.is_dir() or (path.is_file() and path.suffix in STORED)
    if not (is_installed(data) or (data and is_there)):
        expected = f"{INSTALLED_WORDS}, or a folder of pictures, {' or '.join(STORED)} that is there"
        raise DataError("--data", got=repr(data), expected=expected)
    if export and all(one.is_member for one in given):
        raise DataError("build", got=f"{export[0]} and no model to export", expected="models, or members alone")


def _check_members(members: list[str], repository: Path, *, name: str, data: str, reference: str | None) -> None:
    """Refuses, before rows are asked about, what only the exported members tell."""
    if name in members:
        raise DataError("--name", got=f"{name}, a member", expected="another name for the cascade")
    if reference is not None and reference not in (*members, ENSEMBLE):
        raise DataError("--reference", got=reference, expected=f"one of {', '.join(members)}, or {ENSEMBLE}")
    blind = [one for one in members if manifest_from_path(repository / one / MANIFEST).preprocess is None]
    if blind and Path(data).is_dir() and next(Path(data).rglob("*.parquet"), None) is None:
        got = f"pictures, and {', '.join(blind)} that take numbers"
        fix = "give build --mean, --std and --resolution (0 and 1 where a model wants values of 0 to 1)"
        raise DataError("build", got=got, expected="members that take pictures", fix=fix)


class StepFailedError(CommitteeError):
    """A step ended with an error, which its own process has printed."""

    def __init__(self, step: str, code: int) -> None:
        self.exit_code = code
        fix = "ask for something else" if code == InfeasibleError.exit_code else "mend it"
        more = "" if step == "check" else f"; options of that step go through --{step}-args"
        fix = f"{fix} and build again, which does not repeat what is finished{more}"
        super().__init__(f"build: step {step}", got=f"exit code {code}, for the reason above", fix=fix)


def _committee_program() -> _Launcher:
    script = Path(sys.executable).with_name("committee")
    shown = _short(script) if script.is_file() else f"{_short(Path(sys.executable))} -m orchestrator"
    return _Launcher(argv=(sys.executable, "-m", "orchestrator"), shown=shown)


def _export_program() -> _Launcher:
    """`python -m export`; it lies in the checkout and not in the installed package."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "export" / "__main__.py").is_file():
        got, expected = f"no package `export` in {checkout}", "a checkout of Committee, which has it"
        fix = "run it from there, or name members that lie in the repository already"
        raise RepositoryError("build", got=got, expected=expected, fix=fix)
    argv, shown = (sys.executable, "-m", "export"), f"{_short(Path(sys.executable))} -m export"
    if Path.cwd() == checkout:
        return _Launcher(argv=argv, shown=shown)
    paths = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    shown = f"PYTHONPATH={shlex.quote(str(checkout))} {shown}"
    return _Launcher(argv=argv, shown=shown, environment={"PYTHONPATH": paths})


def _short(path: Path) -> str:
    """The path relative to the current folder, where it lies below that."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


@dataclass
class _Steps:
    """Runs steps one after another; with `as_json` every step prints JSON, which is kept in `done`.

    `done` has step, command, seconds and result of every finished step; `running` is the step that runs or failed.
    """

    total: int
    as_json: bool = False
    done: list[dict[str, Any]] = field(default_factory=list)
    running: str | None = None

    def run(self, step: str, what: str, words: list[str], *, program: _Launcher | None = None) -> Any:
        """Runs one step and returns the JSON that it printed; progress and errors go to stderr as they come.

        Args:
            step: its name.
            what: it does, for people.
            words: the arguments.
            program: that does it and prints JSON; None for the command of `committee` with the step's name.

        Raises:
            StepFailedError: it ended with another code than 0.
            Interrupted: somebody ended this process; the step's has ended too.
        """
        self.running = step
        quiet = program is not None or self.as_json
        words = [*([step] if program is None else []), *words, *(["--json"] if quiet else [])]
        program = program or _committee_program()
        command = f"{program.shown} {shlex.join(words)}"
        typer.secho(f"[{len(self.done) + 1}/{self.total}] {step}: {what}", err=True, bold=True)
        typer.echo(f"$ {command}", err=True)
        start = time.monotonic()
        # The names of members are read from JSON, but people read its errors.
        environment = program.environment | ({} if self.as_json else {TEXT_ERRORS: "1"})
        try:
            code, printed = _run((*program.argv, *words), environment, captured=quiet)
        except KeyboardInterrupt as stop:
            text = f"build: stopped in step {step}; the same command goes on from there"
            raise interrupted_from(stop, text) from None
        if code:
            raise StepFailedError(step, code if code > 0 else 128 - code)
        result = json.loads(printed) if quiet else None
        seconds = round(time.monotonic() - start, 1)
        self.running = None
        self.done.append({"step": step, "command": command, "seconds": seconds, "result": result})
        return result


def _run(argv: tuple[str, ...], environment: dict[str, str], *, captured: bool) -> tuple[int, str]:
    """Exit code, negative for a signal, and what was printed to stdout."""
    sys.stdout.flush()
    child = subprocess.Popen(
        argv, env=os.environ | environment, stdout=subprocess.PIPE if captured else None, text=True
    )
    try:
        printed, _ = child.communicate()
    except BaseException:
        _end(child)
        raise
    return child.returncode, printed or ""


def _end(child: subprocess.Popen[str]) -> None:
    """Waits for a child to end by itself, then after SIGTERM, and kills it at last."""
    for wait_s, then in ((OWN_END_S, child.terminate), (ASKED_END_S, child.kill)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=wait_s)
            return
        then()
    child.communicate()


def _exported(steps: _Steps, given: list[GivenModel], repository: Path, *, options: list[str]) -> list[str]:
    """Exports what is not in the repository, and gives the members' names in the order of the models."""
    sources = [one.word for one in given if not one.is_member]
    if not sources:
        return [one.word for one in given]
    # In one command, so that all take images of one size.
    words = ["member", *sources, "-o", str(repository), *options]
    result = steps.run("export", "make members of the models, and prove them", words, program=_export_program())
    for name, done in result["members"].items():
        typer.echo(f"{repository / name}: {done}", err=True)
    made = iter(result["members"])
    return [one.word if one.is_member else next(made) for one in given]


def _finished(steps: _Steps, made: dict[str, Any]) -> None:
    serve = f"{_committee_program().shown} serve --repository {shlex.quote(made['repository'])}"
    spec, notes = cascade_from_path(Path(made["plan"])), []
    if len(spec.stages) == 1:
        asked, why = " and ".join(member.name for member in spec.members), "the plan's lines above say why"
        notes = [f"no cascade does what was asked, so every row is answered by {asked}; {why}"]
    if steps.as_json:
        print_json({**made, "serve": serve, "notes": notes, "steps": steps.done, "failed": None})
        return
    cascade = Path(made["repository"]) / made["cascade"]
    typer.echo(f"Cascade: {cascade}\nReport:  {made['report']}\nServe:   {serve}")
    for note in notes:
        typer.echo(f"note: {note}", err=True)
