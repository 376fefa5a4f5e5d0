"""What a member's scores mean: logits or probabilities, and the names of their classes."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from export.members import is_current, manifest_in
from export.parity import Scores
from orchestrator.errors import ExportError
from orchestrator.graphs.ending import LOGITS, PROBABILITIES, SIGMOID, ending_of
from orchestrator.repository.files import write_all
from orchestrator.repository.render import render_member
from orchestrator.spec import Manifest
from orchestrator.spec.answer import first_unlike, names_from_text
from orchestrator.spec.documents import text_from_path
from orchestrator.spec.manifest import MANIFEST, json_from_manifest
from orchestrator.spec.output_kind import EXCLUSIVE, OUTPUT_KINDS, ScoreEvidence

AUTO = "auto"
CHOICES = (AUTO, *OUTPUT_KINDS)


class ObservedReference:
    """A model, rows -> float32 (n, k), whose scores are collected as evidence while it is asked."""

    def __init__(self, ask: Callable[[Any], Scores]) -> None:
        self._ask = ask
        self.evidence = ScoreEvidence()

    def __call__(self, rows: Any) -> Scores:
        """The scores of rows."""
        scores = self._ask(rows)
        if scores.ndim == 2:
            self.evidence = self.evidence.with_scores(scores)
        return scores


def output_kind_of(model: onnx.ModelProto, evidence: ScoreEvidence, *, asked: str, subject: str) -> str:
    """The kind of a member's only output, by its graph and its scores on many rows.

    Values decide wherever they can: rows that differ and are all distributions are probabilities, whatever gives
    them. The graph decides where they cannot, as for a head that answers every row alike.

    Raises ExportError where it is neither, or not what `asked` names.
    """
    ending, operator = ending_of(model.graph, model.graph.output[0].name) or (None, "")
    _require_exclusive(ending, operator, evidence, asked=asked, subject=subject)
    # Equal rows are no evidence: a bias may happen to add up to 1. Behind a layer without bounds, the sums have to
    # agree better than the scores do.
    conclusive = evidence.sums_agree if ending == LOGITS else evidence.varies
    kind = PROBABILITIES if ending == PROBABILITIES else evidence.kind if conclusive else LOGITS
    # A layer without bounds may give distributions, as a regression on one-hot targets does, and a constant head
    # may be either: then the user is believed.
    either = evidence.adds_up and (ending == LOGITS or (ending is None and not evidence.varies))
    if asked in (AUTO, kind) or either:
        return kind if asked == AUTO else asked
    because = f"a graph that ends in {operator}, and {evidence}" if ending == kind else str(evidence)
    raise ExportError(
        f"{subject} `output_kind` {asked}",
        got=because,
        expected="values from 0 to 1 that add up to 1" if asked == PROBABILITIES else LOGITS,
        fix=f"leave the option out, they are {kind}",
    )


def _require_exclusive(
    ending: str | None, operator: str, evidence: ScoreEvidence, *, asked: str, subject: str
) -> None:
    """Raises ExportError for what cannot be logits or probabilities of exclusive classes."""
    # Two sigmoids may be those of x and -x, which together are a softmax.
    pair = evidence.classes == 2 and evidence.adds_up and evidence.varies
    # Where values alone speak against logits, the user who names them is believed.
    doubtful = ending is None and asked != LOGITS
    parts = evidence.low >= 0 and evidence.low_sum > 1
    shares = evidence.in_unit_interval and evidence.varies and not evidence.adds_up
    distributions = "rows that add up to 1, or logits"
    refusals = (
        # -log p: its largest is the least likely class.
        (
            evidence.is_negative_log,
            f"{evidence}, negative log-probabilities: exp(-score) adds up to 1",
            "logits, log-probabilities or probabilities, whose largest is the likeliest class",
            "export it again without the last minus sign",
        ),
        # Such as 2p - 1.
        (
            doubtful and evidence.adds_up_otherwise and not parts,
            f"{evidence}, as shifted or scaled probabilities do",
            distributions,
            "export the probabilities themselves, or say `output_kind` logits if they are logits all the same",
        ),
        (
            ending == SIGMOID and not pair,
            f"a graph that ends in {operator}, sigmoids of classes by themselves ({evidence})",
            f"a softmax over all classes, or logits: {EXCLUSIVE}",
            "export a network trained for exclusive classes; of a yes-or-no one two columns, 1 - p and p",
        ),
        (
            ending == PROBABILITIES and not evidence.adds_up,
            f"a graph that ends in {operator}, but {evidence}",
            "rows that add up to 1: a softmax over the classes, the last axis",
            "export it again with the softmax over the classes, or without it",
        ),
        (
            doubtful and parts and evidence.sums_agree,
            f"{evidence}, as percentages do",
            distributions,
            "divide them by that, or say `output_kind` logits if they are logits all the same",
        ),
        (
            doubtful and shares,
            f"{evidence}, as sigmoids give",
            f"{distributions}: {EXCLUSIVE}",
            "say `output_kind` logits if these are logits of exclusive classes all the same",
        ),
    )
    for applies, got, expected, fix in refusals:
        if applies:
            raise ExportError(f"{subject} output", got=got, expected=expected, fix=fix)


# An option of a manifest; it decides nothing but the manifest and the label file.
LABELS_OPTION = "labels_sha256"


def labels_from_path(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line, in the order of the scores; ExportError for any other file."""
    what = f"`labels` {path}"
    try:
        names = names_from_text(text_from_path(path, newline=""))
    except ValueError as error:
        raise ExportError(what, got=f"a file that {error}", expected="a name per line, in UTF-8") from error
    if not names:
        raise ExportError(what, got="no names", expected="one per class, a line each, in the order of the scores")
    wrong = next((number for number, name in enumerate(names, 1) if not name or set(name) & set("\r\n")), None)
    if wrong is not None:
        raise ExportError(what, got=f"no name on line {wrong}", expected="one name a line")
    return names


def require_one_per_class(subject: str, labels: tuple[str, ...] | None, classes: int) -> None:
    """Raises ExportError where the number of names is not that of the classes."""
    if labels is not None and len(labels) != classes:
        raise ExportError(f"{subject} labels", got=f"{len(labels)} names", expected=f"{classes}, one per class")


def label_options(labels: tuple[str, ...] | None) -> dict[str, Any]:
    """The option that a manifest keeps of given class names; none where none are given."""
    text = "".join(f"{name}\n" for name in labels or ())
    return {} if labels is None else {LABELS_OPTION: hashlib.sha256(text.encode()).hexdigest()}


def require_same_classes(manifest: Manifest, other: Manifest) -> None:
    """Raises ExportError where two members of one committee have different classes."""
    what = f"{manifest.name} beside {other.name}"
    mine, others = manifest.output.dims[0], other.output.dims[0]
    if mine != others:
        expected = f"{others}, as members of one committee share their classes"
        fix = "export them in separate commands if they are not one committee"
        raise ExportError(what, got=f"{mine} classes", expected=expected, fix=fix)
    if not manifest.labels or not other.labels:
        return
    place = first_unlike(manifest.labels, other.labels)
    if place is not None:
        got = f"class {place} called {manifest.labels[place]!r}"
        expected = f"{other.labels[place]!r}, the same classes in the same order"
        raise ExportError(what, got=got, expected=expected, fix="name the classes of all of them with `labels`")


def rename_if_current(
    repository: Path,
    name: str,
    labels: tuple[str, ...] | None,
    *,
    options: dict[str, Any],
    beside: Manifest | None,
) -> bool:
    """Renames the classes of a member where it is there and otherwise up to date; returns whether it did.

    `options` are those the manifest will have then; the classes must be those of `beside`, of the same committee.
    Raises ExportError where they are not, or where there is not one name per class.
    """
    if labels is None or not is_current(repository / name, options, apart_from=LABELS_OPTION):
        return False
    if beside is not None:
        require_same_classes(dataclasses.replace(manifest_in(repository, name), labels=labels), beside)
    return rename_classes(repository, name, labels, options=options)


def rename_classes(
    repository: Path, name: str, labels: tuple[str, ...] | None, *, options: dict[str, Any] | None = None
) -> bool:
    """Writes a member's class names and the options that go with them; returns whether it had others before.

    Raises ExportError where there is not one name per class.
    """
    manifest = manifest_in(repository, name)
    kept = manifest.options if options is None else options
    renamed = dataclasses.replace(manifest, labels=labels, options=kept)
    if renamed == manifest:
        return False
    require_one_per_class(f"member {name}", labels, manifest.output.dims[0])
    write_all(repository / name, {MANIFEST: json_from_manifest(renamed)})
    render_member(repository / name)
    return True
