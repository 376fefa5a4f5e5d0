"""A cascade model loaded over the fake server, with members whose answers are written in the input.

Every row is a vector of 2k numbers: what member "small" says, then what member "large" says.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.bls.model import CascadeModel, cascade_model
from orchestrator.spec import CascadeSpec, InputSpec, Limits, Member, Stage, json_from_cascade
from tests.fakes.triton import FakeTriton, InferenceResponse, Request

K = 3
EASY = np.array([9, 0, 0, 0, 9, 0], np.float32)
HARD = np.array([0.1, 0, 0, 0, 0, 9], np.float32)


def two_stages(**changes: Any) -> CascadeSpec:
    spec = CascadeSpec(
        name="cascade",
        inputs=(InputSpec(name="x", dtype="FP32", dims=(2 * K,)),),
        classes=K,
        combine="last",
        stages=(
            Stage(members=(Member(name="small", output="logits", cost=1.0, max_batch_size=8),), threshold=0.9),
            Stage(members=(Member(name="large", output="logits", cost=10.0, max_batch_size=4),)),
        ),
        limits=Limits(max_batch_size=64, max_deferred_rows=16),
    )
    return dataclasses.replace(spec, **changes)


def small(rows: np.ndarray) -> np.ndarray:
    return rows[:, :K]


def large(rows: np.ndarray) -> np.ndarray:
    return rows[:, K:]


def usual(**members: Any) -> FakeTriton:
    """A server with both members, or others in their place."""
    return FakeTriton({"small": small, "large": large, **members})


@contextmanager
def loaded(
    tmp_path: Path, fake: FakeTriton, spec: CascadeSpec | None = None, config: dict[str, Any] | None = None
) -> Iterator[CascadeModel]:
    spec = spec or two_stages()
    folder = tmp_path / "repository" / spec.name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "cascade.json").write_text(json_from_cascade(spec))
    model = cascade_model(fake)()
    arguments = {"model_repository": str(folder), "model_version": "1", "model_name": spec.name}
    model.initialize({**arguments, "model_config": json.dumps(config or {})})
    try:
        yield model
    finally:
        model.finalize()


def rows_of(*kinds: np.ndarray) -> np.ndarray:
    return np.stack(kinds).astype(np.float32)


def asking(*kinds: np.ndarray, **parameters: Any) -> Request:
    return Request({"x": rows_of(*kinds)}, parameters=parameters)


def ask_all(model: CascadeModel, requests: list[Request], timeout_s: float = 10) -> list[InferenceResponse]:
    """Executes the requests as one batch and waits for every response, listed or sent."""
    listed = model.execute(requests) or [None] * len(requests)
    assert len(listed) == len(requests)
    return [wait_for(request, response, timeout_s) for request, response in zip(requests, listed, strict=True)]


def eventually(condition: Callable[[], object], timeout_s: float = 5) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.005)


def wait_for(request: Request, listed: InferenceResponse | None, timeout_s: float = 10) -> InferenceResponse:
    """The one response of a request, listed or sent."""
    if listed is not None:
        assert request.sender.response is None, "a request was answered twice"
        return listed
    assert request.sender.done.wait(timeout_s), "a request was never answered"
    assert request.sender.response is not None
    return request.sender.response


def answers_of(
    tmp_path: Path, *requests: Request, fake: FakeTriton | None = None, spec: CascadeSpec | None = None
) -> list[InferenceResponse]:
    """The responses to one batch of a model that is loaded for it."""
    with loaded(tmp_path, fake or usual(), spec) as model:
        return ask_all(model, list(requests))
