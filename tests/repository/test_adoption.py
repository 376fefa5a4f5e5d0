"""What a plan does not know of a member's output is filled in only with what can be it."""

from __future__ import annotations

import pytest

from orchestrator.errors import RepositoryError
from orchestrator.repository.completion import UNKNOWN_OUTPUT, adopted_spec
from orchestrator.repository.member_facts import MemberFacts, Tensor
from orchestrator.spec import Member
from tests.repository.builders import CLASSES, DIMS, spec_of

K = (CLASSES,)


def adopted_output(outputs: dict[str, tuple[int, ...]], planned: str = UNKNOWN_OUTPUT) -> str:
    """The output that is asked of a member with these outputs, all FP32."""
    facts = MemberFacts(
        inputs={"x": Tensor(name="x", dtype="FP32", dims=DIMS)},
        outputs={name: Tensor(name=name, dtype="FP32", dims=dims) for name, dims in outputs.items()},
        max_batch_size=8,
        instances=1,
    )
    return adopted_spec(spec_of(Member(name="m", output=planned)), {"m": facts}).members[0].output


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({"output": K}, "output"),
        ({"output": K, "other": K}, "output"),
        ({"output": (-1,), "other": K}, "output"),
        ({"output": (1,), "scores": K}, "scores"),
        ({"output": (1,), "scores": (-1,)}, "scores"),
        ({"scores": K, "features": (-1,)}, "scores"),
    ],
)
def test_an_output_that_is_called_as_the_unknown_one_is_taken_where_it_fits(
    outputs: dict[str, tuple[int, ...]], expected: str
) -> None:
    assert adopted_output(outputs) == expected


@pytest.mark.parametrize("outputs", [{"output": (1,)}, {"output": (1,), "a": K, "b": K}])
def test_where_none_or_several_can_be_it_the_error_lists_the_outputs(outputs: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(RepositoryError, match=r"member m: got outputs output FP32\[1\]"):
        adopted_output(outputs)


def test_an_output_that_the_plan_names_is_kept() -> None:
    assert adopted_output({"output": K, "named": (1,)}, planned="named") == "named"
