"""The one place that makes and reads the text of config.pbtxt; `repository/render.py` says which and where.

A configuration goes through the protobuf type, never through a string template. Equal configurations give equal
bytes. A written text says who wrote it and has the hash of its own body, so that a later rendering can tell its
own work from a file that somebody has edited since.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError, SpecError
from orchestrator.spec.cascade import PLAN
from orchestrator.spec.documents import text_of_file

CONFIG = "config.pbtxt"
_BY = "# Written by committee; edit "
_HASH = "# Hash of what follows: "
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'" + r'|"(?:[^"\\]|\\.)*"')


def text_from_config(
    config: ModelConfig,
    *,
    source: str = PLAN,
    rendered: ModelConfig | None = None,
    comments: Sequence[str] = (),
) -> str:
    """The text of config.pbtxt.

    Args:
        config: what to write.
        source: the file to edit instead, named in the first line.
        rendered: the configuration without a person's settings, where `config` has some. Its hash is written in
            place of `config`'s, so that the text counts as edited.
        comments: a person's own comments, each a line that begins with "#".
    """
    body: str = text_format.MessageToString(config)
    digest = _hash(body if rendered is None else text_format.MessageToString(rendered))
    own = "".join(f"{line}\n" for line in comments)
    return f"{_BY}{source} and render again.\n{_HASH}{digest}\n{own}{body}"


def config_from_text(text: str, *, subject: str, unknown_fields: bool = False) -> ModelConfig:
    """The configuration that a whole config.pbtxt holds; `subject` names it in errors, usually by its path.

    Fields that the installed protocol does not have are passed over where `unknown_fields` says so.

    Raises:
        RepositoryError: the text is malformed or has a field Triton does not know, with the line.
    """
    config = ModelConfig()
    try:
        text_format.Parse(text, config, allow_unknown_field=unknown_fields)
    except text_format.ParseError as error:
        # The parser puts "line:column : " before its message; a reader needs the line only.
        message = str(error).rpartition(" : ")[2].rstrip(".")
        place = "at its end" if error.GetLine() is None else f"at line {error.GetLine()}"
        what = f"{subject} {place} is no model configuration of Triton's ({message})"
        raise RepositoryError(what, fix="correct that line") from error
    return config


def config_from_path(path: Path, *, unknown_fields: bool = False) -> ModelConfig:
    """The configuration a file holds; see `config_from_text`.

    Raises:
        RepositoryError: the file is missing, not readable or malformed.
    """
    return config_from_text(text_from_path(path), subject=str(path), unknown_fields=unknown_fields)


def json_from_config(config: ModelConfig) -> dict[str, Any]:
    """The configuration as JSON values, with the field names of config.pbtxt."""
    return dict(MessageToDict(config, preserving_proto_field_name=True))


def text_from_path(path: Path) -> str:
    """The text of a configuration file; RepositoryError where the file is missing, not readable or not UTF-8."""
    try:
        return text_of_file(path, str(path))
    except SpecError as error:
        raise RepositoryError(error.faults["file"], fix="render the model, or write its config") from error


def is_written_here(text: str) -> bool:
    """True for a text that `text_from_config` wrote and nobody has changed since."""
    first, _, rest = text.partition("\n")
    second, _, body = rest.partition("\n")
    return first.startswith(_BY) and second == f"{_HASH}{_hash(body)}"


def is_marked(text: str) -> bool:
    """True for a text that `text_from_config` wrote, whatever was changed since."""
    return text.startswith(_BY)


def is_hash_of(config: ModelConfig, text: str) -> bool:
    """Whether the first lines of a text have the hash of this configuration."""
    body: str = text_format.MessageToString(config)
    return f"{_HASH}{_hash(body)}" in text.splitlines()[:2]


def comments_in(text: str) -> list[str]:
    """The comment lines of a text, without the two that `text_from_config` begins with."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line.startswith("#") and not line.startswith((_BY, _HASH))]


def line_of_field(text: str, field: str, *, place: int = 0) -> int | None:
    """Number of the line, from 1, on which a text sets a top-level field; None where no line does.

    `place` says how many earlier lines that set it are skipped, for a field that may be set several times.
    """
    depth = 0
    for number, line in enumerate(text.splitlines(), start=1):
        bare = _QUOTED.sub("", line).partition("#")[0]
        if depth == 0 and re.search(rf"(?<!\w){field}\s*[:{{\[]", bare):
            if place == 0:
                return number
            place -= 1
        depth += sum(map(bare.count, "{[<")) - sum(map(bare.count, "}]>"))
    return None


def values_of_field(config: ModelConfig, field: str) -> list[str]:
    """The values of a field as text: several for a repeated field, none for a field that is not set."""
    found: Any = {one.name: value for one, value in config.ListFields()}.get(field, [])

    def text(value: object) -> str:
        if isinstance(value, Message):
            return f"{field} {{ {text_format.MessageToString(value, as_one_line=True)} }}"
        return f"{field}: {json.dumps(value)}"

    return list(map(text, [found] if isinstance(found, Message | str | int) else found))


def differences(got: ModelConfig, expected: ModelConfig) -> dict[str, tuple[str, str]]:
    """Top-level fields in which two configurations differ -> both values as text."""
    names = [field.name for field in ModelConfig.DESCRIPTOR.fields]
    pairs = {name: (_text_of_field(got, name), _text_of_field(expected, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _text_of_field(config: ModelConfig, name: str) -> str:
    # A copy with one field lets the text format print maps and repeated fields in its own way.
    only = with_fields(ModelConfig(), [name], of=config)
    return text_format.MessageToString(only, as_one_line=True) or "nothing"


def with_fields(config: ModelConfig, names: Iterable[str], *, of: ModelConfig) -> ModelConfig:
    """A configuration with some of its top-level fields replaced by another one's."""
    found = ModelConfig()
    found.CopyFrom(config)
    FieldMask(paths=names).MergeMessage(of, found, True, True)
    return found


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
