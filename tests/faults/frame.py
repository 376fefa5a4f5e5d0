"""One fault on the served product: injected and removed while clients ask rows of known answers, then counted."""

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import ServingError
from perf.harness.product import ServedProduct
from perf.load.checked import LOST, RIGHT, TWICE, WRONG, CheckedLoad, CheckedRequest, KnownRows, counted
from perf.routes.obedient import MARK, MEMBER_TIMEOUT_MS, STRICT, ObedientRepository, obedient_repository

# P1 of a request without a deadline: the time limits of its three stages and a second, and one for the way there.
LIMIT_S = 3 * MEMBER_TIMEOUT_MS / 1000 + 2.0
# P4: whole again so many seconds after the fault, plus the server's own start where it had to be restarted.
WHOLE_S = 5.0
# As long as this, and for so many requests, everything must be right for service to count as whole.
STEADY_S, STEADY_REQUESTS = 1.5, 40
# A row waits so much longer than it allows before it counts as never whole.
_PATIENCE_S = 15.0


@dataclass
class Bed:
    """What a fault works on: the repository, the product that serves it, and what the fault itself finds wrong."""

    repository: ObedientRepository
    product: ServedProduct
    known: KnownRows
    folder: Path
    complaints: list[str] = field(default_factory=list)
    others: list[CheckedRequest] = field(default_factory=list)  # requests that the fault itself sent

    def complain(self, text: str) -> None:
        self.complaints.append(text)


Inject = Callable[[Bed], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class FaultRow:
    """A fault and what is expected of the service.

    Args:
        name: also of its test.
        says: what is done, for people.
        inject: injects it on entering and removes it on leaving.
        hold_s: between the two.
        errors: codes that requests may get; any other is a fault.
        spared: requests whose rows all end before this stage must all be right (P2).
        ends: the product is stopped by it, so that nothing has to be whole afterwards.
        restarts: the server may have to start again, which counts as its own start.
        idle: nobody asks when it is injected.
        marked: the rows that need the last stage have the mark.
        flags: some answers must be flagged.
        model: asked.
    """

    name: str
    says: str
    inject: Inject
    hold_s: float = 1.0
    errors: frozenset[str] = frozenset({"UNAVAILABLE"})
    spared: int = 0
    ends: bool = False
    restarts: bool = False
    idle: bool = False
    marked: bool = False
    flags: bool = False
    model: str = STRICT


@dataclass(frozen=True, kw_only=True)
class FaultResult:
    """What was counted of one row; `faults` is empty where it kept what is promised."""

    row: FaultRow
    counts: dict[str, int]
    whole_s: float | None
    faults: tuple[str, ...]


class Bench:
    """Runs rows on one product, which is served anew where a row left it ended, not whole or started again.

    Restarts are bounded within ten minutes, and rows are not to use up one another's.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._product: ServedProduct | None = None
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="committee-faults-")))
        self.repository = obedient_repository(self.folder / "repository")
        plans = [self.repository.plan, self.repository.with_thresholds(0.5)[1]]
        self.known = KnownRows(self.repository.images, self.repository.records, plans)
        self.triton_version = ""

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._stack.close()

    def end(self) -> None:
        """Ends the product; the next row gets a new one."""
        if self._product is not None:
            self._product.kill()
            self._product = None

    def product(self) -> ServedProduct:
        """The product, served if it is not."""
        if self._product is None:
            self.repository.order()
            self._product = ServedProduct(self.repository.folder, self.folder)
            self.triton_version = self._product.triton_version
        return self._product

    def run(self, row: FaultRow) -> FaultResult:
        """Injects one fault, removes it and counts."""
        product = self.product()
        bed = Bed(repository=self.repository, product=product, known=self.known, folder=self.folder)
        load = CheckedLoad(
            address=product.grpc,
            model=row.model,
            known=self.known,
            limit_s=LIMIT_S,
            mark=MARK if row.marked else 0.0,
        )
        try:
            whole_s = _faulted(row, bed, load)
        except ServingError as error:
            bed.complain(f"not injected: {error}")
            whole_s = None
        allowed_s = WHOLE_S + (product.start_s if row.restarts else 0.0)
        done = load.done + bed.others
        found = _faults_of(row, bed, done, whole_s, allowed_s)
        if found or row.ends or row.restarts:
            self.end()
        return FaultResult(row=row, counts=counted(done), whole_s=whole_s, faults=tuple(found))


def _faulted(row: FaultRow, bed: Bed, load: CheckedLoad) -> float | None:
    """Seconds from the fault's end until service was whole, or until the product had ended; None if never."""
    patience_s = WHOLE_S + _PATIENCE_S + (bed.product.start_s if row.restarts else 0.0)
    with ExitStack() as stack:
        clients = stack.enter_context(ExitStack())
        clients.enter_context(load.running())
        if _whole(load, time.monotonic(), 20.0) is None:
            raise ServingError("service before the fault", got=f"not whole: {_last_error(load)}")
        if row.idle:
            clients.close()
        with row.inject(bed):
            injected_s = time.monotonic()
            if row.idle and not row.ends:
                clients.enter_context(load.running())
            time.sleep(row.hold_s)
        removed_s = time.monotonic() if row.hold_s else injected_s
        if row.ends:
            ended = bed.product.ended_within(patience_s)
            return time.monotonic() - injected_s if ended else None
        return _whole(load, removed_s, patience_s)


def _whole(load: CheckedLoad, since_s: float, patience_s: float) -> float | None:
    """Seconds until the last request that was not right, once enough were right after it; None if never."""
    while time.monotonic() < since_s + patience_s:
        done = [one for one in list(load.done) if one.done_s >= since_s]
        last_s = max((one.done_s for one in done if one.outcome != RIGHT), default=since_s)
        after = [one for one in done if one.done_s > last_s]
        stages = {one.needs for one in after}
        steady = time.monotonic() - last_s >= STEADY_S
        if steady and len(after) >= STEADY_REQUESTS and len(stages) == len(load.known.by_stage):
            return last_s - since_s
        time.sleep(0.05)
    return None


def _last_error(load: CheckedLoad) -> str:
    return next((f"{one.outcome} {one.text}" for one in reversed(load.done) if one.outcome != RIGHT), "no answer")


def _faults_of(
    row: FaultRow, bed: Bed, done: list[CheckedRequest], whole_s: float | None, allowed_s: float
) -> list[str]:
    counts = counted(done)
    found = list(bed.complaints)
    found += [f"{counts[name]} {name}" for name in (LOST, WRONG, TWICE) if counts[name]]
    for code in sorted(counts.keys() - {*row.errors, "right", "flagged", LOST, WRONG, TWICE}):
        found.append(f"{counts[code]} {code}: {next(one.text for one in done if one.outcome == code)[:160]}")
    harmed = sum(one.needs < row.spared and one.outcome != RIGHT for one in done)
    if harmed:
        found.append(f"{harmed} requests harmed that had no need of the member")
    if row.flags and not counts["flagged"]:
        found.append("no answer was flagged")
    if not counts[RIGHT]:
        found.append("no answer was right")
    if whole_s is None:
        found.append("never ended" if row.ends else "never whole again")
    elif whole_s > allowed_s:
        found.append(f"{'ended' if row.ends else 'whole'} after {whole_s:.1f} s, {allowed_s:.1f} allowed")
    return found
