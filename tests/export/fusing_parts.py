"""What the tests of fusing share."""

from pathlib import Path

import numpy as np
import onnx
from typer.testing import CliRunner

from export.__main__ import app
from export.fusing import Fusion
from export.images import PREFIX
from orchestrator.decision.combine import Combiner
from orchestrator.errors import CommitteeError
from orchestrator.spec import CascadeSpec, InputSpec, Member, Stage
from tests.repository.builders import add_member


def combined(members: list[Member], combine: str, outputs: list[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Probabilities, labels and failures that the decision core finds."""
    spec = CascadeSpec(
        name="combined",
        input=InputSpec(name="x", dtype="FP32", dims=(1,)),
        classes=outputs[0].shape[1],
        stages=(Stage(members=tuple(members)),),
        combine=combine,
    )
    combiner = Combiner(spec)
    accumulator = combiner.empty(len(outputs[0]))
    failed, _ = combiner.add_stage(accumulator, 0, outputs)
    bad = np.zeros(len(outputs[0]), bool) if failed is None else failed >= 0
    return (*combiner.distribution(accumulator), bad)


def preprocess_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.name.startswith(PREFIX)]


def two(repository: Path, **changes: object) -> Fusion:
    add_member(repository, "a", seed=1)
    add_member(repository, "b", seed=2, **changes)
    return Fusion(name="both", members=tuple(Member(name=n, output="logits") for n in "ab"), combine="mean_logit")


def fused_by_command(*arguments: object) -> str:
    """What `python -m export fuse` prints, or its one line of error."""
    done = CliRunner().invoke(app, ["fuse", *map(str, arguments)])
    if isinstance(done.exception, CommitteeError):
        assert "\n" not in str(done.exception)
        return str(done.exception)
    assert done.exit_code == 0, done.output
    return done.stdout
