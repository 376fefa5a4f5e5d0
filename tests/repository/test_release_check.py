"""`check --triton`: a repository against the ONNX Runtime inside one image."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.repository.check import check
from orchestrator.repository.render import render
from orchestrator.spec import Fit, manifest_from_path
from orchestrator.spec.manifest import json_from_manifest
from tests.repository.builders import add_member, linear_model, spec_of


def built(
    repository: Path, *, runtimes: dict[str, Any] | None = None, recorded: str | None = None, ir: int = 10
) -> Path:
    """A cascade of two members; what they were proven on and recorded with as asked."""
    model = linear_model(1)
    model.ir_version = ir
    members = [
        add_member(repository, "small", model=model, runtimes=runtimes or {}, versions={"onnxruntime": "1.31.1"}),
        add_member(repository, "large", seed=2, runtimes=runtimes or {}, versions={"onnxruntime": "1.31.1"}),
    ]
    extra = {} if recorded is None else {"recorded_with": {"onnxruntime": recorded}}
    fit = Fit(
        data_sha256="0", rows=10, split="", target="", accuracy=None, accuracy_ci95=None, exit_share=(0.5, 0.5),
        mean_cost=1.0, extra=extra,
    )  # fmt: skip
    spec = spec_of(*members)
    render(dataclasses.replace(spec, fit=fit), repository)
    return repository


def texts(report: Any, kind: str) -> list[str]:
    return [f"{one.model} {one.field}: {one.text}" for one in getattr(report, kind)]


def test_members_that_were_proven_there_and_plans_recorded_there_raise_nothing(tmp_path: Path) -> None:
    repository = built(tmp_path, runtimes={"1.19.2": {"max_abs": 0.0}}, recorded="1.19.2")
    report = check(repository, triton="24.10")
    assert report
    assert not [text for text in texts(report, "notes") if "Triton" in text]
    assert [vars(note) for note in report.notes] == [vars(note) for note in check(repository).notes]


def test_what_was_not_proven_there_is_a_note_with_the_way_out(tmp_path: Path) -> None:
    repository = built(tmp_path, runtimes={"1.19.2": {"not_proven": "no wheel"}}, recorded="1.31.1")
    report = check(repository, triton="24.10")
    assert report
    notes = texts(report, "notes")
    assert any(
        "small Triton 24.10: not proven on ONNX Runtime 1.19.2 of Triton 24.10 (no wheel)" in n for n in notes
    )
    assert any("--runtimes 24.10" in note for note in notes)
    assert any(
        "recorded with ONNX Runtime 1.31.1, served by 1.19.2: small, large not proven there" in n for n in notes
    )
    proven = built(tmp_path / "other", runtimes={"1.27.0": {"max_abs": 0.0}}, recorded="1.31.1")
    notes = texts(check(proven, triton="26.07"), "notes")
    assert any("served by 1.27.0: its members are proven there" in note for note in notes)


def test_a_file_newer_than_the_runtime_reads_is_a_fault(tmp_path: Path) -> None:
    repository = built(tmp_path, ir=12)
    report = check(repository, triton="24.10")
    assert not report
    (fault,) = texts(report, "faults")
    assert "small model file IR version: got 12, ONNX Runtime 1.19.2 of Triton 24.10 reads up to 10" in fault
    assert check(repository, triton="26.09")
    model = onnx.load(str(repository / "small/1/model.onnx"))
    model.opset_import[0].version = 27
    (repository / "small/1/model.onnx").write_bytes(model.SerializeToString())
    assert any(
        "small model file opset: got 27" in text for text in texts(check(repository, triton="26.09"), "faults")
    )


def test_a_recorded_fault_is_one_of_the_check_whatever_else_is_recorded(tmp_path: Path) -> None:
    for number, made_with in enumerate(("1.31.1", "1.19.2")):
        repository = tmp_path / str(number)
        proof = {"1.19.2": {"max_abs": 3.0, "fault": "differs by up to 3"}}
        add_member(repository, "small", runtimes=proof, versions={"onnxruntime": made_with})
        report = check(repository, triton="24.10")
        assert not report
        (fault,) = texts(report, "faults")
        assert "small Triton 24.10: wrong on ONNX Runtime 1.19.2 of Triton 24.10 (differs by up to 3)" in fault
        assert check(repository, triton="26.07")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("runtimes", {"1.19.2": one}) for one in (
            "1e-4", None, [], 3, {}, {"max_abs": "1"}, {"max_abs": -1}, {"max_abs": True}, {"fault": 1},
            {"not_proven": ["no"]}, {"max_abs": 0, "fault": None},
        )),
        ("runtimes", []),
        ("processor_flags", [1]),
        ("processor_flags", [["avx_vnni"]]),
        ("processor_flags", "avx_vnni"),
    ],
)  # fmt: skip
def test_a_manifest_that_says_no_proof_is_a_fault_and_no_traceback(tmp_path: Path, key: str, value: Any) -> None:
    add_member(tmp_path, "small")
    path = tmp_path / "small/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(SpecError, match=key):
        manifest_from_path(path)
    for release in (None, "24.10"):
        report = check(tmp_path, triton=release)
        assert not report
        assert any(key in text for text in texts(report, "faults"))


def test_a_release_nobody_knows_the_runtime_of_is_said_and_not_guessed(tmp_path: Path) -> None:
    notes = texts(check(built(tmp_path), triton="26.11"), "notes")
    assert any("no public source names the ONNX Runtime of its image" in note for note in notes)


@pytest.mark.parametrize(("name", "says"), [("26.70", "did you mean"), ("newest", "from 24.10 to 26.11")])
def test_a_release_that_is_none_is_one_line(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(RepositoryError, match=says):
        check(built(tmp_path), triton=name)


def test_a_member_without_a_manifest_is_said_to_be_unproven(tmp_path: Path) -> None:
    repository = built(tmp_path)
    (repository / "small/manifest.json").unlink()
    assert any("no manifest says" in text for text in texts(check(repository, triton="24.10"), "notes"))


def test_a_member_that_not_every_processor_answers_alike_is_a_note(tmp_path: Path) -> None:
    add_member(tmp_path, "byte", processor_flags=("avx_vnni", "amx_int8"))
    add_member(tmp_path, "plain")
    notes = texts(check(tmp_path), "notes")
    assert [note for note in notes if "serve it on processors with one of avx_vnni, amx_int8" in note]
    assert not any(note.startswith("plain") for note in notes)


def test_a_manifest_keeps_what_it_was_proven_on(tmp_path: Path) -> None:
    built(tmp_path, runtimes={"1.19.2": {"max_abs": 0.5}})
    manifest = manifest_from_path(tmp_path / "small/manifest.json")
    manifest = dataclasses.replace(manifest, processor_flags=("avx_vnni",))
    (tmp_path / "small/manifest.json").write_text(json_from_manifest(manifest))
    assert manifest_from_path(tmp_path / "small/manifest.json") == manifest
