"""`python -m perf onefile`: time of one graph for a whole cascade against its members alone, in ONNX Runtime.

The graph and the members are timed in the same rounds, one after the other, so that drift of the machine affects
both alike. Ratios are formed within a round; their median is given with its quartiles. Members alone are called
one after another, as in a cascade: a member called over and over by itself would keep its weights in the cache.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import typer
from onnx import numpy_helper, parser
from rich.table import Table

from export.onefile.writing import onefile_model
from orchestrator.repository.index import plan_path
from orchestrator.rows.digits import digits_split
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage, cascade_from_path
from orchestrator.spec.cascade import PLAN
from perf.harness.machine import machine_here, write_json
from perf.harness.report import console_table, progress_shown, show

Rows = npt.NDArray[Any]
Calls = Sequence[Callable[[], object]]
MIXES = {"all easy": 0.0, "15 % hard": 0.15, "all hard": 1.0}


@dataclass(frozen=True, kw_only=True)
class OnefileCase:
    """One batch of one mix.

    Args:
        rows: rows in the batch.
        mix: share of rows that go to the last stage, a key of `MIXES`.
        asked: number of rows that each stage is asked about.
        onefile_us: microseconds of one call of the graph, one figure per round.
        members_us: microseconds of the members together, each on the rows it is asked about, one per round.
    """

    cascade: str
    rows: int
    mix: str
    asked: tuple[int, ...]
    onefile_us: tuple[float, ...]
    members_us: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """The case with median and quartiles of the graph's time over the members', and the median difference."""
        one, members = np.array(self.onefile_us), np.array(self.members_us)
        low, middle, high = np.percentile(one / members, [25, 50, 75])
        extra = np.median(one - members)
        return {
            **asdict(self),
            "ratio": round(float(middle), 4),
            "ratio_quartiles": [round(float(low), 4), round(float(high), 4)],
            "extra_us": round(float(extra), 1),
        }


def measure_onefile(
    spec: CascadeSpec,
    repository: Path,
    rows: Rows,
    *,
    batches: Sequence[int],
    rounds: int,
    progress: Callable[[str], None],
    round_s: float = 0.15,
) -> list[OnefileCase]:
    """Times the one graph of a cascade against its members alone.

    Args:
        spec: the cascade.
        repository: model repository that holds its members.
        rows: (n, *dims), some that exit at stage 0 and some that go to the last stage.
        batches: batch sizes.
        rounds: number of timed rounds; one more before them warms up.
        progress: called with a line before each case.
        round_s: seconds for which each side is called over and over in a round, at least five times.
    """
    whole = _session(onefile_model(spec, repository)[0].SerializeToString())
    members = {
        member.name: _session((repository / member.name / "1" / "model.onnx").read_bytes())
        for member in spec.members
    }
    source = spec.input.name
    exits = whole.run(["exit_stage"], {source: rows})[0][:, 0]
    easy, hard = rows[exits == 0], rows[exits == len(spec.stages) - 1]
    cases = []
    for size in batches:
        for mix, share in MIXES.items():
            if size == 1 and 0 < share < 1:
                continue  # a single row is either easy or hard
            progress(f"{spec.name}: {size} rows, {mix}")
            batch = _batch(easy, hard, size=size, share=share)
            left = whole.run(["exit_stage"], {source: batch})[0][:, 0]
            parts = [batch[left >= stage] for stage in range(len(spec.stages))]
            calls = [
                _call(members[member.name], member.input or source, part)
                for stage, part in zip(spec.stages, parts, strict=True)
                for member in stage.members
                if len(part)
            ]
            one, alone = _rounds([_call(whole, source, batch)], calls, rounds=rounds, round_s=round_s)
            asked = tuple(map(len, parts))
            about: dict[str, Any] = {"cascade": spec.name, "rows": size, "mix": mix, "asked": asked}
            cases.append(OnefileCase(**about, onefile_us=one, members_us=alone))
    return cases


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    # As the models are served: parallelism comes from instances.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _batch(easy: Rows, hard: Rows, *, size: int, share: float) -> Rows:
    count = round(share * size) if share in (0.0, 1.0) else max(1, round(share * size))
    return np.concatenate([hard[np.arange(count) % len(hard)], easy[np.arange(size - count) % len(easy)]])


def _call(session: Any, name: str, rows: Rows) -> Callable[[], object]:
    feeds = {name: np.ascontiguousarray(rows)}
    return lambda: session.run(None, feeds)


def _rounds(whole: Calls, members: Calls, *, rounds: int, round_s: float) -> tuple[tuple[float, ...], ...]:
    """Microseconds of the calls of both, one figure per round; a round before them warms up."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        # The second finds caches as the first left them, so they take turns.
        for side in (0, 1) if number % 2 else (1, 0):
            found[side].append(_time_us((whole, members)[side], round_s))
    return tuple(tuple(figures[1:]) for figures in found)


def _time_us(calls: Calls, round_s: float) -> float:
    """Median processor time of the calling thread for all calls, made for `round_s` seconds, at least five times.

    A session of one thread runs on the caller's thread. Its processor time is what a call takes on a core of its
    own; the clock on the wall would also count waiting for a core that another process uses.
    """
    taken: list[int] = []
    until = time.perf_counter_ns() + int(round_s * 1e9)
    while len(taken) < 5 or time.perf_counter_ns() < until:
        start = time.thread_time_ns()
        for call in calls:
            call()
        taken.append(time.thread_time_ns() - start)
    return float(np.median(taken)) / 1000


def random_cascade(repository: Path, *, widths: Sequence[int] = (48, 72)) -> tuple[CascadeSpec, Rows]:
    """A cascade of convolutional networks with random weights, about 10 and 20 ms at 32 rows on one core.

    The members go into the repository; `widths` are the channels of their first layers. Gives the cascade, its
    threshold at the median score, and 256 random rows.
    """
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(256, 3, 32, 32)).astype(np.float32)
    names = [f"cnn_{width}" for width in widths]
    for name, width in zip(names, widths, strict=True):
        path = repository / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(_cnn(width, rng))
    said = _session((repository / names[0] / "1" / "model.onnx").read_bytes()).run(None, {"image": rows})[0]
    scores = 1 / np.exp(said - said.max(axis=1, keepdims=True)).sum(axis=1)
    stages = [Stage(members=(Member(name=name, output="logits"),)) for name in names]
    stages[0] = Stage(members=stages[0].members, threshold=float(np.median(scores)))
    source = InputSpec(name="image", dtype="FP32", dims=(3, 32, 32))
    return CascadeSpec(name="random_cnns", inputs=(source,), classes=10, stages=tuple(stages)), rows


def _cnn(width: int, rng: np.random.Generator) -> bytes:
    sizes = [(width, 3), (width, width), (2 * width, width), (2 * width, 2 * width)]
    weights, layers, last = {}, "", "image"
    for index, (out, into) in enumerate(sizes):
        weights[f"w{index}"] = rng.normal(size=(out, into, 3, 3)) * np.sqrt(2 / (9 * into))
        strides = [1, 1] if index % 2 else [2, 2]
        layers += f"c{index} = Conv <pads = [1, 1, 1, 1], strides = {strides}> ({last}, w{index})\n"
        layers += f"{(last := f'r{index}')} = Relu (c{index})\n"
    # Weights large enough for probabilities to spread between sure and unsure.
    weights["head"] = rng.normal(size=(2 * width, 10)) * 4 / np.sqrt(width)
    model = parser.parse_model(f"""<ir_version: 10, opset_import: ["": 18]>
        cnn (float[batch, 3, 32, 32] image) => (float[batch, 10] logits) {{
            {layers}
            pooled = GlobalAveragePool ({last})
            flat = Flatten (pooled)
            logits = MatMul (flat, head)
        }}""")
    arrays = (numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items())
    model.graph.initializer.extend(arrays)
    return bytes(model.SerializeToString())


def table_from_cases(cases: Sequence[OnefileCase]) -> Table:
    """Medians over rounds for the console, one line per case."""
    rows = []
    for case in cases:
        value = case.as_json()
        low, high = value["ratio_quartiles"]
        rows.append((
            case.cascade, case.mix, str(case.rows), " + ".join(map(str, case.asked)),
            f"{np.median(case.members_us):.1f}", f"{np.median(case.onefile_us):.1f}",
            f"{value['extra_us']:.1f}", f"{value['ratio']:.3f}", f"{low:.3f}-{high:.3f}",
        ))  # fmt: skip
    figures = ("rows", "asked", "members us", "one graph us", "extra us", "ratio", "quartiles")
    return console_table(
        "one graph against its members alone, medians over rounds", ("cascade", "mix"), figures, rows
    )


def onefile(
    repository: Annotated[Path, typer.Option(help="Model repository with the digits cascade.")] = Path(
        "model_repository"
    ),
    output: Annotated[Path, typer.Option(help="Folder for onefile.json.")] = Path("build/bench"),
    rounds: Annotated[int, typer.Option(min=3, max=200, help="Timed rounds per case.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Time whole cascades in one ONNX graph against their members alone.

    Example: python -m perf onefile --rounds 15
    """
    with progress_shown() as say, tempfile.TemporaryDirectory() as folder:
        plan = plan_path(repository / "digits_cascade") or repository / "digits_cascade" / "1" / PLAN
        digits = cascade_from_path(plan)
        images = digits_split("test").images
        cases = measure_onefile(digits, repository, images, batches=(1, 32, 256), rounds=rounds, progress=say)
        made, rows = random_cascade(Path(folder))
        cases += measure_onefile(made, Path(folder), rows, batches=(1, 32), rounds=rounds, progress=say)
    document = {
        "machine": machine_here(),
        "onnxruntime": onnxruntime.__version__,
        "cases": [case.as_json() for case in cases],
    }
    write_json(document, output / "onefile.json")
    show(document, table_from_cases(cases), as_json=as_json, written=[output / "onefile.json"])
