import dataclasses
import json

import onnx
import pytest

from orchestrator.errors import SpecError
from orchestrator.graphs.editing import PRODUCER
from orchestrator.graphs.onefile import (
    ONEFILE_KEY,
    OneFile,
    answering,
    metadata_from_onefile,
    onefile_from_model,
    onefile_name,
)
from orchestrator.spec import CascadeSpec, Fit, Limits, Member
from tests.repository.builders import spec_of


def plan() -> CascadeSpec:
    return spec_of(Member(name="small", output="logits"), Member(name="large", output="logits"))


def made(stages: int | None = None) -> OneFile:
    return OneFile(spec=answering(plan()), stages=stages, sha256={"small": "1" * 64, "large": "2" * 64})


def read(metadata: dict[str, str], producer: str = PRODUCER) -> OneFile | None:
    model = onnx.ModelProto(producer_name=producer)
    onnx.helper.set_model_props(model, metadata)
    # In a damaged file: bytes that are no text.
    damaged = model.SerializeToString().replace(b"@", b"\xff")
    return onefile_from_model(onnx.ModelProto.FromString(damaged), subject="here")


@pytest.mark.parametrize("stages", [None, 1, 2])
def test_what_is_written_into_the_metadata_is_read_back(stages: int | None) -> None:
    assert read(metadata_from_onefile(made(stages))) == made(stages)
    assert read({"cascade": "{}"}) is None
    assert read(metadata_from_onefile(made(stages)), producer="another") is None


WHOLE = json.loads(metadata_from_onefile(made())[ONEFILE_KEY])


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", "{}", '{"format": 1}', "@",
        *(json.dumps({**WHOLE, **change}) for change in (
            {"format": 2}, {"stages": 0}, {"stages": 3}, {"stages": True},
            {"sha256": []}, {"sha256": {"small": 1}}, {"cascade": {}},
        )),
    ],
)  # fmt: skip
def test_spoilt_metadata_is_a_spec_error_that_says_what_to_do(text: str) -> None:
    with pytest.raises(SpecError, match="write it again with"):
        read({ONEFILE_KEY: text})


def test_what_has_changed_since_is_named_and_what_changes_no_answer_is_not() -> None:
    onefile, now = made(), plan()
    hashes: dict[str, str | None] = dict(onefile.sha256)
    assert onefile.outdated(now, hashes) == {}
    assert onefile.outdated(None, {}) == {}
    assert onefile.outdated(now, {"small": None}) == {}
    stricter = dataclasses.replace(now.stages[0], threshold=0.5)
    assert list(onefile.outdated(dataclasses.replace(now, stages=(stricter, now.stages[1])), hashes)) == ["plan"]
    assert list(onefile.outdated(now, {**hashes, "large": "0" * 64})) == ["member large"]
    fit = Fit(
        data_sha256="",
        rows=1,
        split="",
        target="",
        accuracy=1.0,
        accuracy_ci95=None,
        exit_share=(1.0,),
        mean_cost=1.0,
    )
    limits = Limits(max_batch_size=now.limits.max_batch_size, max_deferred_rows=7)
    assert onefile.outdated(dataclasses.replace(now, fit=fit, limits=limits), hashes) == {}


def test_usual_names_say_whether_all_of_the_cascade_is_inside() -> None:
    assert (onefile_name(plan()), onefile_name(plan(), 1)) == ("cascade_onefile", "cascade_lead")
