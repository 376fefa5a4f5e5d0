"""What a person has set in a rendered config.pbtxt, carried over into the next rendering.

The plan decides what is served: names, tensors, the batch limit, the steps of an ensemble. How the server runs it
(version policy, instances, queue delay and the like) is the person's own once it was edited.
"""

from __future__ import annotations

from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError
from orchestrator.repository.pbtxt import (
    comments_in,
    config_from_text,
    differences,
    is_hash_of,
    line_of_field,
    text_from_config,
)

# What a person may tune in a rendered config without changing what is served.
TUNABLE = frozenset({
    "dynamic_batching", "parameters", "optimization", "version_policy", "instance_group", "metric_tags",
    "model_metrics",
})  # fmt: skip


def tuned_text(text: str, rendered: ModelConfig, *, path: Path) -> str:
    """The text of a config that was rendered before and edited since, as the next rendering leaves it.

    Args:
        text: of the edited config.
        rendered: what the plan gives.
        path: of the config, for errors.

    Raises:
        RepositoryError: it is malformed, or edited in a field that the plan decides.
    """
    edited = config_from_text(text, subject=str(path))
    # As it was rendered, if what was edited is tunable: its hash is the one in its first lines then.
    before = _with_tuning(edited, tuning=rendered)
    if not is_hash_of(before, text):
        _require_owned_fields(before, rendered, text=text, path=path)
    wanted = _with_tuning(rendered, tuning=edited)
    if wanted == edited:
        return text
    return text_from_config(wanted, rendered=rendered, comments=comments_in(text))


def _with_tuning(config: ModelConfig, *, tuning: ModelConfig) -> ModelConfig:
    """A configuration with the tunable fields of another one in place of its own."""
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
    """Raises RepositoryError naming the lines whose field is the plan's and differs from it."""
    wrong = differences(edited, rendered)
    if not wrong:
        return
    lines = {field: line_of_field(text, field) for field in wrong}
    got = "; ".join(
        f"no {field}, expected {_short(expected)}"
        if lines[field] is None
        else f"line {lines[field]}: {_short(got)}, expected {_short(expected)}"
        for field, (got, expected) in wrong.items()
    )
    raise RepositoryError(
        str(path),
        got=f"edits of what the plan decides: {got}",
        fix="undo them and change the plan instead, or overwrite the config with --force; "
        f"{', '.join(sorted(TUNABLE))} are kept as edited",
    )


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."
