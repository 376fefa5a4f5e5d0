"""Watches in a thread whether the members are as planned; while one is not, the cascade answers no request.

Members are asked about one row now and then, in threads of their own, so that a member that hangs keeps the watch
from noticing neither that a file changes nor what another member says. What a process that died was asked is never
answered, so a member that owes an answer for long is asked once more.
"""

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.bls.member_calls import MemberCalls
from orchestrator.bls.pieces import Refusal
from orchestrator.bls.replacement import is_model_ready, missing_members
from orchestrator.bls.rows import AnyRows, Rows
from orchestrator.errors import SpecError
from orchestrator.spec import CascadeSpec
from orchestrator.spec.planned_models import PlannedModel, planned_models
from orchestrator.spec.processor import DOT_PRODUCT_FLAGS, members_lacking_flags, processor_flags

# How often a member is asked, so that another model in its place shows within 5 s. Where a row takes long it is
# asked less often, so that this stays a hundredth of its time; in a hurry it is asked at every turn.
PROBE_S, PROBE_SHARE, TURN_S = 4.0, 0.01, 0.25
# The first request waits so long for the first answers of the members, with which later ones are compared.
FIRST_TURN_S = 2.0
# A member that refuses the row so often before it has answered it once is not asked any more.
MOST_REFUSALS = 3
# The same row gives the same scores but for rounding; other weights differ by more than this share of the largest.
TOLERANCE = 1e-3
# A member that owes an answer for so long is asked once more, and after twice that once more again.
OWED_S = 1.0
# How often files are looked at.
LOOK_S = 0.5
# A changed file that takes longer to read than this counts as another file until it has been read.
PATIENCE_S = 2.0
# So long after a fault or a new date a member is asked at every look: the server may still load the earlier file.
COMPARE_S = 30.0
# So long every member has to be as planned after a file was another: a load of that file may end only now.
HOLD_S = 2.0
NOT_LOOKED = "its members have not been looked at yet"


@dataclass(frozen=True, slots=True)
class Probe:
    """The answer of a version of a model about the row."""

    scores: Rows | None = None  # (1, k); None where it refused the row, or was not asked yet
    is_absent: bool = False  # whether the server has no such version ready
    began_s: float = 0.0  # on the monotonic clock, when it was asked; 0 where it was not
    until_s: float = 0.0  # when it is asked again, where nothing hurries


@dataclass(eq=False)
class MemberProbes:
    """The answers of a cascade's models about one row."""

    pb: Any  # the server's Python module
    calls: MemberCalls
    row: AnyRows  # (1, *dims), that of a request, so that it is one they understand
    first: dict[str, Rows] = field(default_factory=dict)  # by name, the scores that a model gave at first
    hurry_until_s: dict[str, float] = field(default_factory=dict)  # by name, until when it is asked at every turn

    def __post_init__(self) -> None:
        self._found: dict[tuple[str, int | None], Probe] = {}
        # Calls that have not come back since the last answer, and when another is made.
        self._owed: dict[tuple[str, int | None], tuple[int, float]] = {}
        self._callers: set[threading.Thread] = set()
        self._refusals: Counter[str] = Counter()
        self._turned = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="committee-probes", daemon=True)

    def begin(self, models: Iterable[PlannedModel]) -> None:
        """Starts to ask these, and waits a while for their first answers."""
        for model in models:
            self.of(model.name, model.version)
        self._thread.start()
        self._turned.wait(FIRST_TURN_S)

    def stop(self) -> None:
        """Ends the threads, but for those whose calls do not come back."""
        self._stop.set()
        until_s = time.monotonic() + 5
        for thread in (self._thread, *self._callers):
            if thread.ident is not None:
                thread.join(timeout=max(0.0, until_s - time.monotonic()))

    def of(self, name: str, version: int | None) -> Probe:
        """The last answer of a version, None for any; one that was not asked yet will be."""
        return self._found.setdefault((name, version), Probe())

    def is_there(self, name: str, version: int | None) -> bool:
        """Whether the server had a version ready when it was asked last."""
        probe = self.of(name, version)
        if probe.began_s:
            return not probe.is_absent
        # Not asked yet: another version of the model stands for it.
        return not any(one.is_absent for (other, _), one in list(self._found.items()) if other == name)

    def are_first(self, name: str, scores: Rows) -> bool:
        """Whether scores are those that a model gave at first, but for rounding."""
        before = self.first[name]
        if before.shape != scores.shape:
            return False
        most = float(np.abs(before[np.isfinite(before)]).max(initial=0.0))
        return bool(np.allclose(before, scores, rtol=0, atol=TOLERANCE * most, equal_nan=True))

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                self._ask_those_due(time.monotonic())
            except Exception as error:  # the next turn may go well
                self._log(error)
            if not self._owed:
                self._turned.set()
            self._stop.wait(TURN_S)

    def _ask_those_due(self, now_s: float) -> None:
        for key, known in list(self._found.items()):
            calls, again_s = self._owed.get(key, (0, 0.0))
            is_due = now_s >= known.until_s or now_s < self.hurry_until_s.get(key[0], 0.0)
            if is_due and known.until_s < math.inf and now_s >= again_s:
                self._owed[key] = calls + 1, now_s + OWED_S * 2**calls
                caller = threading.Thread(target=self._ask, args=key, name="committee-probe", daemon=True)
                caller.start()

    def _log(self, error: Exception) -> None:
        self.pb.Logger.log_error(f"committee: probes: {type(error).__name__}: {error}")

    def _ask(self, name: str, version: int | None) -> None:
        self._callers.add(threading.current_thread())
        try:
            said = self._asked(name, version)
            if said.began_s > self._found[name, version].began_s:
                self._found[name, version] = said
        except Exception as error:  # the next call may go well
            self._log(error)
        self._owed.pop((name, version), None)
        self._callers.discard(threading.current_thread())
        if not self._owed:
            self._turned.set()

    def _asked(self, name: str, version: int | None) -> Probe:
        began_s = time.monotonic()
        said = self.calls.ask_about_row(name, self.row, version=version)
        ended_s = time.monotonic()
        until_s = ended_s + max(PROBE_S, (ended_s - began_s) / PROBE_SHARE)
        if not isinstance(said, Refusal):
            self.first.setdefault(name, said)
            return Probe(said, False, began_s, until_s)
        if not said.is_absent and name not in self.first:
            self._refusals[name] += 1
            if self._refusals[name] == MOST_REFUSALS:
                until_s = math.inf
                text = "refuses the first request's row, so that it is watched by its files only"
                self.pb.Logger.log_warn(f"committee: {name} {text}: {said.text}")
        return Probe(None, said.is_absent, began_s, until_s)


class MemberWatch:
    """Whether a cascade may answer: versions, files and scores of its members are compared with the plan.

    Files alone do not show what a server has loaded: a load may come late, a configuration may name another file,
    a repository may be out of sight. So each member with a hash in the plan is asked now and then about one row,
    that of the first request, and has to give the scores it gave at first.

    Whether a member is ready shows in the same way. One call of the server's own `is_model_ready` from a thread
    makes Triton 24.10 abort when it is told to stop.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
        repository: folder that holds the members' folders, which need not be visible from here.
        verify_files: whether to compare their files with the plan's hashes.

    Attributes:
        fault: why no request is answered now, None while all is as planned; read for every request.
        versions: model name -> version to ask by number, where that is known.
        models: those of the plan, in its order.
    """

    def __init__(self, pb_utils: Any, spec: CascadeSpec, repository: Path, *, verify_files: bool) -> None:
        self.fault: str | None = NOT_LOOKED
        self.versions: dict[str, int] = {}
        self._pb = pb_utils
        self._spec = spec
        self._verify_files = verify_files
        self.models = planned_models(spec, repository, verify_files=verify_files)
        self._prefix = self.models[len(spec.members)] if spec.fused_prefix is not None else None
        # Deriving models count as members: no stage may be given other tensors than planned.
        self._members = tuple(model for model in self.models if model is not self._prefix)
        self._prefix_fault: str | None = None
        self._calls: MemberCalls | None = None
        self._on_fault: Callable[[str], None] = lambda _: None
        self._probes: MemberProbes | None = None
        # By name: what its scores say, when it was wrong last, until when it hurries, reads of its files.
        self._differs: dict[str, str | None] = {}
        self._wrong_at_s: dict[str, float] = {}
        self._compare_until_s: dict[str, float] = {}
        self._reads: dict[str, int] = {}
        self._hold_until_s = 0.0
        self._is_complete = False
        self._began_s = 0.0
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> None:
        """Compares versions and files that can be seen, while the server starts or serves another version.

        Raises:
            SpecError: a member is another than the thresholds were fitted on, or is missing while another version
                of the cascade serves, which then stays.
        """
        self._say_what_is_not_verified()
        self._say_what_this_processor_lacks()
        differ = {model.name: wrong for model in self._members if (wrong := model.fault()) is not None}
        if self._prefix is not None:  # where it is another, the members answer in its place
            self._set_prefix(self._prefix.fault())
        if differ:
            fix = "plan again, or set the config parameter verify_hashes to no"
            raise SpecError(f"cascade {self._spec.name}", differ, fix=fix)
        # Triton is the parent of the processes that its Python models run in.
        missing = missing_members(self._pb, self._spec.name, self._members, server=os.getppid())
        if missing:
            fix = "load them first and then this cascade; the version that serves stays"
            raise SpecError(f"cascade {self._spec.name}", missing, fix=fix)
        self._take_versions()

    def bind(self, calls: MemberCalls, *, on_fault: Callable[[str], None]) -> None:
        """Sets what asks members, and what is called when one is no longer as planned."""
        self._calls, self._on_fault = calls, on_fault

    def may_ask_prefix(self) -> bool:
        """Whether the plan's fused prefix is as planned; without it the members are asked."""
        return self._prefix_fault is None

    def begin(self, row: AnyRows) -> None:
        """Starts to watch with a row (1, *dims) of the first request; the server is up by then.

        Where that fails, for want of a thread say, the next request may try again.
        """
        if self._probes is not None:
            return
        assert self._calls is not None, "bound before the first request"
        self._probes = probes = MemberProbes(self._pb, self._calls, row.copy())
        try:
            probes.begin(model for model in self.models if model.has_hash)
            self.look()
            thread = threading.Thread(target=self._loop, name="committee-members", daemon=True)
            thread.start()
            self._thread = thread
        except Exception as error:  # the requests must be refused, and the watch begun by others
            self._probes, self.fault = None, NOT_LOOKED
            probes.stop()
            self._pb.Logger.log_error(f"committee: members: {type(error).__name__}: {error}")

    def look(self) -> None:
        """Compares everything now."""
        with self._looking:
            self._set(self._found())

    @property
    def is_ready(self) -> bool:
        """Whether every member was there and as planned at the last look.

        Before the first request it looks now: a server that asks may still be starting, too early to `begin`.
        """
        fault = self.fault
        if self._probes is None:
            with self._looking:
                fault = self._found()
        return fault is None and self._is_complete

    def stop(self) -> None:
        """Ends the threads."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self._probes is not None:
            self._probes.stop()

    def _loop(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self.look()
            except Exception as error:  # the next look may go well
                self._pb.Logger.log_error(f"committee: members: {type(error).__name__}: {error}")

    def _found(self) -> str | None:
        """What keeps the cascade from answering, None where nothing does."""
        self._began_s, self._is_complete = time.monotonic(), True
        wrong = {model: text for model in self._members if (text := self._wrong(model)) is not None}
        if self._prefix is not None:
            self._set_prefix(self._wrong(self._prefix))
        self._take_versions()
        self._is_complete &= not wrong
        faults = {model.name: text for model, text in wrong.items() if not model.is_left_to_stage}
        return "; ".join(f"member {name} is not as planned: {text}" for name, text in faults.items()) or None

    def _wrong(self, model: PlannedModel) -> str | None:
        # The plan says nothing about a member without a hash; one that is gone fails the rows that need it.
        ready = self._ready if model.has_hash or self._probes is None else None
        wrong, reads = model.fault(ready, tick=self._tick), self._reads.get(model.name)
        now_s = time.monotonic()
        if reads is not None and reads != model.reads:
            # The file may be right again already, after the server has loaded another.
            self._compare_until_s[model.name] = now_s + COMPARE_S
        self._reads[model.name] = model.reads
        if wrong is not None:
            self._wrong_at_s[model.name] = now_s
            if self._probes is not None and model in self._members and not model.is_left_to_stage:
                # The cascade answers nothing until it is back.
                self._probes.hurry_until_s[model.name] = now_s + PATIENCE_S
        elif model.has_hash and self._probes is not None:
            wrong = self._answers_differ(model, self._probes)
        if wrong is None:
            model.was_changed = False
            return None
        self._compare_until_s[model.name] = now_s + COMPARE_S
        if model.was_changed or self._differs.get(model.name) is not None:
            self._hold_until_s = now_s + HOLD_S
        return wrong

    def _answers_differ(self, model: PlannedModel, probes: MemberProbes) -> str | None:
        """Why a member's scores are not trusted, None where they are those it gave at first."""
        name = model.name
        if time.monotonic() < self._compare_until_s.get(name, 0.0):
            probes.hurry_until_s[name] = self._compare_until_s[name]
        probe = probes.of(name, model.version)
        if name in probes.first and probe.began_s < self._wrong_at_s.get(name, 0.0):
            return "it has not answered since that was mended"
        if probe.scores is not None:
            text = "the server answers from another file than the planned one; load it again"
            self._differs[name] = None if probes.are_first(name, probe.scores) else text
        # A refusal tells nothing: another client's row in the same batch may have caused it.
        return self._differs.get(name)

    def _ready(self, name: str, version: int | None) -> bool:
        if self._probes is not None:
            return self._probes.is_there(name, version)
        try:
            return is_model_ready(self._pb, name, version)
        except Exception:  # the server starts or stops, so nothing is known, and requests must wait
            self._is_complete = False
            return True

    def _tick(self, path: Path) -> None:
        if time.monotonic() - self._began_s > PATIENCE_S and self.fault is None:
            self._set(f"a member's file has changed: {path} is being read")

    def _take_versions(self) -> None:
        self.versions.update({model.name: model.version for model in self.models if model.version is not None})

    def _set(self, fault: str | None) -> None:
        before, log, name = self.fault, self._pb.Logger, self._spec.name
        had_fault = before not in (None, NOT_LOOKED)
        if fault == before or (fault is None and had_fault and time.monotonic() < self._hold_until_s):
            return
        self.fault = fault
        if fault is None:
            if had_fault:
                log.log_warn(f"committee: {name} answers again: all members are as planned")
        elif had_fault:
            log.log_warn(f"committee: {name} is not back yet: {fault}")
        else:
            log.log_error(f"committee: {name} answers no request: {fault}")
            self._on_fault(self.refusal(fault))

    def _set_prefix(self, fault: str | None) -> None:
        before, self._prefix_fault = self._prefix_fault, fault
        if fault != before and self._prefix is not None:
            said = "is as planned again" if fault is None else f"is not as planned, its members are asked: {fault}"
            self._pb.Logger.log_warn(f"committee: fused prefix {self._prefix.name} {said}")

    @staticmethod
    def refusal(fault: str) -> str:
        """What a client is told."""
        return f"{fault}; try again when that is mended"

    def _say_what_is_not_verified(self) -> None:
        log = self._pb.Logger
        if not self._verify_files:
            log.log_warn("committee: verify_hashes is no: members' files are not compared with the plan's hashes")
        if unseen := [model.name for model in self.models if not model.is_seen]:
            text = "files that cannot be seen from here, watched by their answers only"
            log.log_warn(f"committee: members not verified: {', '.join(unseen)} ({text})")
        unverified = [model for model in self.models if model.is_seen and not model.is_verified]
        reasons = {False: "no hash in the plan", True: "no file of a usual name, watched by their answers"}
        for has_hash, text in reasons.items():
            names = [model.name for model in unverified if model.has_hash is has_hash]
            if names and self._verify_files:
                log.log_info(f"committee: members' files not verified: {', '.join(names)} ({text})")

    def _say_what_this_processor_lacks(self) -> None:
        fit = self._spec.fit
        if fit is not None and (lacking := members_lacking_flags(fit.extra, processor_flags())):
            text = f"this processor has none of {', '.join(DOT_PRODUCT_FLAGS)}, so on it {', '.join(lacking)}"
            text += " answers otherwise than recorded; on a GPU it does not matter"
            self._pb.Logger.log_warn(f"committee: {text}")
