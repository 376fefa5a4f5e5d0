"""Keeps asking whether the members are as planned, in a thread, and holds back answers while one is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.bls.calls import MemberCalls
from orchestrator.errors import SpecError
from orchestrator.spec import CascadeSpec
from orchestrator.spec.inputs import INPUT_DTYPES, InputSpec
from orchestrator.spec.planned_models import PlannedModel, planned_models
from orchestrator.spec.processor import DOT_PRODUCT_FLAGS, members_lacking_flags, processor_flags

# A member that changes is noticed within two of these and the time to read its file.
LOOK_S = 0.5
# A changed file that takes longer to read than this is taken for another until it is read.
PATIENCE_S = 2.0
# So long after a fault or a new date a member's answers are compared: a server may load what lay there before.
COMPARE_S = 30.0
# The same row gives the same scores but for rounding; other weights differ by more than this share of the largest.
TOLERANCE = 1e-3
NOT_LOOKED = "its members have not been looked at yet"

Scores = npt.NDArray[Any]


class PlannedMembers:
    """Whether a cascade may answer: its members are asked by version and compared with the plan.

    A file that is the planned one again does not mean that the server has loaded it again. So each verified member
    is asked about one fixed row when all is well, and again after it was another, before the cascade goes on.

    Args:
        pb_utils: the server's Python module.
        spec: the cascade.
        repository: folder that holds the members', which need not be visible from here.
        verify_files: whether to compare their files with the plan's hashes.

    Attributes:
        fault: why no request is answered now, None while all is as planned; read for every request.
        versions: model name -> version to ask by number, where that is known.
    """

    def __init__(self, pb_utils: Any, spec: CascadeSpec, repository: Path, *, verify_files: bool) -> None:
        self.fault: str | None = NOT_LOOKED
        self.versions: dict[str, int] = {}
        self._pb = pb_utils
        self._spec = spec
        self._models = planned_models(spec, repository, verify_files=verify_files)
        self._members = self._models[: len(spec.members)]
        self._lead = self._models[-1] if spec.lead is not None else None
        self._scores: dict[str, Scores | None] = {}
        self._calls: MemberCalls | None = None
        self._on_fault: Callable[[str], None] = lambda _: None
        self._lead_fault: str | None = None
        self._is_complete = False
        self._compare_until_s: dict[str, float] = {}
        self._reads: dict[str, int] = {}
        self._began_s = 0.0
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._verify_files = verify_files

    def load(self) -> None:
        """Compares versions and files that can be seen, before the server is up.

        Raises:
            SpecError: a member is another than the thresholds were fitted on.
        """
        self._say_what_is_not_verified()
        self._say_what_this_processor_lacks()
        differ = {model.name: wrong for model in self._members if (wrong := model.fault()) is not None}
        if self._lead is not None:  # where it is another, the members answer in its place
            self._set_lead(self._lead.fault())
        if differ:
            fix = "plan again, or set the config parameter verify_hashes to no"
            raise SpecError(f"cascade {self._spec.name}", differ, fix=fix)
        self._take_versions()

    def bind(self, calls: MemberCalls, *, on_fault: Callable[[str], None]) -> None:
        """Hands over who asks members, and who is told when one is no longer as planned."""
        self._calls, self._on_fault = calls, on_fault

    @property
    def may_ask_lead(self) -> bool:
        """Whether the plan's lead is as planned; without it the members are asked."""
        return self._lead_fault is None

    def begin(self) -> None:
        """Looks, and begins to look again and again; called from `execute`, when the server is up.

        Earlier is no good: a question for readiness from a thread ends the process while Triton 24.10 starts.
        """
        self.look()
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="committee-members", daemon=True)
            self._thread.start()

    def look(self) -> None:
        """Compares everything now."""
        with self._looking:
            self._set(self._found())

    @property
    def is_ready(self) -> bool:
        """Whether every member is as planned, and there, by the last look.

        Before the first request it looks by itself: a server that asks may still be starting, no time to `begin`.
        """
        fault = self.fault
        if self._thread is None:
            with self._looking:
                fault = self._found()
        return fault is None and self._is_complete

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

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
        if self._lead is not None:
            self._set_lead(self._wrong(self._lead))
        self._take_versions()
        self._is_complete &= not wrong
        texts = [
            f"member {model.name} is not as planned: {text}"
            for model, text in wrong.items()
            if not model.is_left_to_stage
        ]
        return "; ".join(texts) or None

    def _wrong(self, model: PlannedModel) -> str | None:
        wrong, reads = model.fault(self._ready, tick=self._tick), self._reads.get(model.name)
        if reads is not None and reads != model.reads:
            # The bytes may be right again already, after the server has loaded others.
            self._compare_until_s[model.name] = time.monotonic() + COMPARE_S
        self._reads[model.name] = model.reads
        if wrong is None and model.is_verified:
            wrong = self._answers_differ(model)
        if wrong is not None:
            self._compare_until_s[model.name] = time.monotonic() + COMPARE_S
        else:
            model.was_changed = False
        return wrong

    def _answers_differ(self, model: PlannedModel) -> str | None:
        """Whether the server answers from other weights than those that lie there; asked a while after a fault."""
        before = self._scores.get(model.name)
        if before is not None and time.monotonic() >= self._compare_until_s.get(model.name, 0.0):
            return None
        now = self._asked(model)
        if before is None:
            self._scores[model.name] = now
            return None
        if now is None:
            return "it does not answer"
        if _same_scores(before, now):
            return None
        return "its file is the planned one, but the server answers from another; load it again"

    def _asked(self, model: PlannedModel) -> Scores | None:
        """Scores of one fixed row, None where the model gives none."""
        if self._calls is None:
            return None
        self._take_versions()
        said = self._calls.ask_about_row(model.name, fixed_row(self._spec.input))
        return None if isinstance(said, str) else said

    def _ready(self, name: str, version: int | None) -> bool:
        try:
            return bool(self._pb.is_model_ready(name, "" if version is None else str(version)))
        except Exception:  # the server starts or stops: no news of the members, but not the time for requests
            self._is_complete = False
            return True

    def _tick(self, path: Path) -> None:
        if time.monotonic() - self._began_s > PATIENCE_S and self.fault is None:
            self._set(f"a member's file has changed: {path} is being read")

    def _take_versions(self) -> None:
        for model in self._models:
            if model.version is not None:
                self.versions[model.name] = model.version

    def _set(self, fault: str | None) -> None:
        before, self.fault = self.fault, fault
        if fault == before:
            return
        if fault is not None:
            self._pb.Logger.log_error(f"committee: {self._spec.name} answers no request: {fault}")
            self._on_fault(self.refusal(fault))
        elif before != NOT_LOOKED:
            self._pb.Logger.log_warn(f"committee: {self._spec.name} answers again: all members are as planned")

    def _set_lead(self, fault: str | None) -> None:
        before, self._lead_fault = self._lead_fault, fault
        if fault != before:
            name = f"lead {self._spec.lead.name}" if self._spec.lead is not None else "lead"
            said = "is as planned again" if fault is None else f"is not as planned, its members are asked: {fault}"
            self._pb.Logger.log_warn(f"committee: {name} {said}")

    @staticmethod
    def refusal(fault: str) -> str:
        """What a client is told."""
        return f"{fault}; try again when that is mended"

    def _say_what_is_not_verified(self) -> None:
        log = self._pb.Logger
        if not self._verify_files:
            log.log_warn("committee: verify_hashes is no: members' files are not compared with the plan's hashes")
        unseen = [model.name for model in self._models if not model.is_seen]
        if unseen:
            text = "files that cannot be seen from here, watched by readiness only"
            log.log_warn(f"committee: members not verified: {', '.join(unseen)} ({text})")
        unknown = [model.name for model in self._models if model.is_seen and not model.is_verified]
        if unknown and self._verify_files:
            log.log_info(f"committee: members not verified: {', '.join(unknown)} (no hash in the plan)")

    def _say_what_this_processor_lacks(self) -> None:
        fit = self._spec.fit
        lacking = [] if fit is None else members_lacking_flags(fit.extra, processor_flags())
        if lacking:
            text = f"this processor has none of {', '.join(DOT_PRODUCT_FLAGS)}, so on it {', '.join(lacking)}"
            self._pb.Logger.log_warn(
                f"committee: {text} answers otherwise than recorded; on a GPU it does not matter"
            )


def fixed_row(spec: InputSpec) -> Scores:
    """One row (1, *dims), always the same and of no meaning."""
    values = np.random.default_rng(0).random((1, *spec.dims))
    dtype = np.dtype(INPUT_DTYPES[spec.dtype])
    return values.astype(dtype) if dtype.kind == "f" else (values * 100).astype(dtype)


def _same_scores(before: Scores, now: Scores) -> bool:
    if before.shape != now.shape:
        return False
    most = float(np.abs(before[np.isfinite(before)]).max(initial=0.0))
    return bool(np.allclose(before, now, rtol=0, atol=TOLERANCE * most, equal_nan=True))
