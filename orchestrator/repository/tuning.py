"""A person's settings in a rendered config.pbtxt, carried over into the next rendering.

The plan decides what is served: names, tensors, the batch limit, the steps of an ensemble. How the server runs it
(version policy, instances, queue delay and so on) is up to the person who edits the file.
"""

from itertools import zip_longest
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError
from orchestrator.pbtxt import (
    comments_in,
    config_from_text,
    differences,
    is_hash_of,
    line_of_field,
    text_from_config,
    text_from_path,
    values_of_field,
)
from orchestrator.repository.files import may_replace

# Fields that a person may edit without changing what is served.
TUNABLE = frozenset({
    "dynamic_batching", "parameters", "optimization", "version_policy", "instance_group", "metric_tags",
    "model_metrics",
})  # fmt: skip


def tuned_text(text: str, rendered: ModelConfig, *, path: Path) -> str:
    """The next rendering's text of a config that was edited since it was rendered.

    Args:
        text: of the edited config.
        rendered: the configuration that the plan gives.
        path: of the config, for errors.

    Raises:
        RepositoryError: the text is malformed, or edited in a field that the plan decides.
    """
    edited = config_from_text(text, subject=str(path))
    # The config as it was rendered, if only tunable fields were edited; its first lines then have its own hash.
    before = _with_tuning(edited, tuning=rendered)
    if not is_hash_of(before, text):
        _require_owned_fields(before, rendered, text=text, path=path)
    wanted = _with_tuning(rendered, tuning=edited)
    if wanted == edited:
        return text
    return text_from_config(wanted, rendered=rendered, comments=comments_in(text))


def is_refused(path: Path, rendered: ModelConfig) -> bool:
    """Whether rendering refuses a config because a person has edited fields that the plan decides."""
    try:
        if not may_replace(path):
            tuned_text(text_from_path(path), rendered, path=path)
    except RepositoryError:
        return True
    return False


def _with_tuning(config: ModelConfig, *, tuning: ModelConfig) -> ModelConfig:
    """A configuration with its tunable fields replaced by another one's."""
    found = ModelConfig()
    found.CopyFrom(config)
    for field in TUNABLE:
        found.ClearField(field)
    only = ModelConfig()
    only.CopyFrom(tuning)
    for field, _ in tuning.ListFields():
        if field.name not in TUNABLE:
            only.ClearField(field.name)
    found.MergeFrom(only)
    return found


def _require_owned_fields(edited: ModelConfig, rendered: ModelConfig, *, text: str, path: Path) -> None:
    """Raises RepositoryError with the lines whose fields the plan decides and which differ from it."""
    wrong = differences(edited, rendered)
    if not wrong:
        return
    raise RepositoryError(
        str(path),
        got="edits of what the plan decides: "
        + "; ".join(_edit_of(field, edited, rendered, text=text) for field in wrong),
        fix="undo them and change the plan instead, or overwrite the config with `force` or by removing it; "
        f"{', '.join(sorted(TUNABLE))} are kept as edited",
    )


def _edit_of(field: str, edited: ModelConfig, rendered: ModelConfig, *, text: str) -> str:
    """What was edited in a field, with the line on which the field, or the first wrong of its values, begins."""
    pairs = list(zip_longest(values_of_field(edited, field), values_of_field(rendered, field)))
    place = next(index for index, pair in enumerate(pairs) if pair[0] != pair[1])
    line = line_of_field(text, field, place=place)
    line = line_of_field(text, field) if line is None else line
    got, expected = _shortened(pairs[place][0] or "nothing", pairs[place][1] or "nothing")
    return f"no {field}, expected {expected}" if line is None else f"line {line}: {got}, expected {expected}"


def _shortened(one: str, other: str, limit: int = 120) -> tuple[str, str]:
    """Two texts, cut to the part where they differ."""
    common = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    start = max(0, common - limit // 2) if max(len(one), len(other)) > limit else 0

    def cut(text: str) -> str:
        end = "..." if len(text) - start > limit else ""
        return f"{'...' if start else ''}{text[start : start + limit]}{end}"

    return cut(one), cut(other)
