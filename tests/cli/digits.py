"""A digits cascade on disk and in the fake server, with members whose scores make the same decisions."""

import hashlib
from pathlib import Path

import numpy as np

from orchestrator.spec import CascadeSpec, InputSpec, Member, Preprocess, Stage, json_from_cascade
from tests.fakes.kserve import CLASSES, FakeKServe, cascade, images, logits_of, member

NAMES = ("digits_small", "digits_medium", "digits_large")
PREPROCESS = Preprocess(mode="L", height_px=8, width_px=8, value_min=0, value_max=16)
# The first pixel is the key the fake models answer by: key 25 has label 5 and exits at stage 2.
__all__ = ["NAMES", "digit_spec", "fake_server", "images", "write_plan"]


def digit_spec(name: str = "digits_cascade", preprocess: Preprocess | None = PREPROCESS) -> CascadeSpec:
    """Three stages of one member each."""
    return CascadeSpec(
        name=name,
        inputs=(InputSpec(name="image", dtype="FP32", dims=(1, 8, 8), preprocess=preprocess),),
        classes=CLASSES,
        labels=tuple(f"digit {index}" for index in range(CLASSES)),
        stages=tuple(
            Stage(members=(Member(name=name, output="logits", cost=1000.0),), threshold=0.5 if index < 2 else None)
            for index, name in enumerate(NAMES)
        ),
    )


def write_plan(repository: Path, spec: CascadeSpec | None = None) -> Path:
    """A repository that holds a plan and nothing else."""
    spec = spec or digit_spec()
    folder = repository / spec.name / "1"
    folder.mkdir(parents=True)
    (folder / "cascade.json").write_text(json_from_cascade(spec))
    return repository


def _scores(stage: int) -> object:
    """Logits that are sure from the row's own exit stage on, and flat before it."""

    def answer(rows: np.ndarray, parameters: object) -> dict[str, np.ndarray]:
        keys = rows[:, 0, 0, 0].astype(int)
        sure = (keys // CLASSES) % 3 <= stage
        return {"logits": logits_of(rows) * np.where(sure, 3, 0.05)[:, None].astype(np.float32)}

    return answer


def fake_server(**changes: object) -> FakeKServe:
    """The cascade and its members."""
    members = [member(name, answer=_scores(stage), output_kind="logits") for stage, name in enumerate(NAMES)]
    return FakeKServe([cascade(**changes), *members])


def sha(path: Path) -> str:
    """Hash of a file, to see that it did not change."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
