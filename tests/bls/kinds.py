"""Rows of every kind that a cascade takes: one tensor, several with text, lengths that vary, tensors derived.

Whatever the kind, a row says the same: numbers, which the members' functions get as one array (n, w).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.spec import CascadeSpec, Derived, DerivedTensor, InputSpec

TAIL, PAD, MOST = 7.0, -1, 4
DERIVING = "tokens"
TEXT = InputSpec(name="text", dtype="STRING", dims=(1,))


def text_of(row: np.ndarray) -> bytes:
    return ",".join(map(repr, row.tolist())).encode()


def texts_of(rows: np.ndarray) -> np.ndarray:
    return np.array([[text_of(row)] for row in rows], object)


def rows_of_texts(texts: np.ndarray) -> np.ndarray:
    assert texts.shape[1:] == (1,), texts.shape
    return np.array([[float(word) for word in text.split(b",")] for text in texts[:, 0]], np.float32)


def tokens_of(rows: np.ndarray, lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """The numbers of rows with a tail of some length, padded to the longest, and a mask of what is no padding."""
    width = rows.shape[1]
    ids = np.full((len(rows), width + max(lengths)), PAD, np.float32)
    mask = np.zeros(ids.shape, np.int64)
    for place, length in enumerate(lengths):
        ids[place, :width], ids[place, width : width + length] = rows[place], TAIL
        mask[place, : width + length] = 1
    return {"ids": ids, "mask": mask}


def rows_of_tokens(ids: np.ndarray, mask: np.ndarray, width: int) -> np.ndarray:
    """The numbers again; whoever padded the tokens has padded both, with what the plan says, and nothing else."""
    assert ids.shape == mask.shape, f"ids {ids.shape}, mask {mask.shape}"
    assert mask[:, :width].all(), "a row was cut"
    assert (ids[mask == 0] == PAD).all(), "padding of other values"
    assert (ids[:, width:][mask[:, width:] == 1] == TAIL).all(), "a tail was changed"
    return ids[:, :width]


def length_of(row: np.ndarray) -> int:
    return int(np.abs(row).sum() * 10) % MOST


@dataclass(frozen=True)
class Kind:
    """How rows of w numbers are asked about."""

    name: str
    # w -> inputs
    inputs: Callable[[int], tuple[InputSpec, ...]]
    # rows (n, w) -> the tensors of a request
    tensors: Callable[[np.ndarray], dict[str, np.ndarray]]
    # which tensors a member reads, by its place in the plan
    reads: Callable[[int], dict[str, str]]
    derived: tuple[Derived, ...] = ()

    @property
    def is_one_tensor(self) -> bool:
        return self.name == "one tensor"

    def plan(self, spec: CascadeSpec, width: int) -> CascadeSpec:
        """A plan of one tensor as one of this kind."""
        places = {member.name: place for place, member in enumerate(spec.members)}
        spec = dataclasses.replace(spec, inputs=self.inputs(width), derived=self.derived)
        return spec.with_members(lambda one: dataclasses.replace(one, inputs=self.reads(places[one.name])))

    def rows(self, said: Any, width: int) -> np.ndarray:
        """The numbers that a member was given."""
        if not isinstance(said, Mapping):
            return np.asarray(said)
        found = []
        if "pixels" in said:
            found.append(np.asarray(said["pixels"]))
        if "text" in said:
            found.append(rows_of_texts(said["text"]))
        if "input_ids" in said:
            found.append(rows_of_tokens(said["input_ids"], said["mask"], width))
        for other in found[1:]:
            np.testing.assert_array_equal(found[0], other)
        return found[0]


def derive(said: Any) -> dict[str, np.ndarray]:
    """The deriving model: tokens of texts."""
    rows = rows_of_texts(said["words"])
    made = tokens_of(rows, [length_of(row) for row in rows])
    return {"input_ids": made["ids"], "mask": made["mask"]}


def _lengths(derived: type[Any], **names: str) -> tuple[Any, ...]:
    source = {"source": "input_ids"} if derived is DerivedTensor else {}
    return (
        derived(name="ids", dtype="FP32", dims=(-1,), pad=PAD, buckets=(7, 10, 11, 13), **source),
        derived(name="mask", dtype="INT64", dims=(-1,)),
    )


def _ragged(rows: np.ndarray) -> dict[str, np.ndarray]:
    # The rows of a request have one length.
    return tokens_of(rows, [length_of(rows[0])] * len(rows))


_TOKENS = Derived(
    name=DERIVING, inputs={"words": "text"}, outputs=_lengths(DerivedTensor), max_batch_size=3, cost=5.0
)
_OF_TOKENS = {"input_ids": "ids", "mask": "mask"}
KINDS = (
    Kind(
        "one tensor",
        lambda width: (InputSpec(name="x", dtype="FP32", dims=(width,)),),
        lambda rows: {"x": rows},
        lambda place: {},
    ),
    Kind(
        "several tensors",
        lambda width: (InputSpec(name="x", dtype="FP32", dims=(width,)), TEXT),
        lambda rows: {"x": rows, "text": texts_of(rows)},
        lambda place: ({"text": "text"}, {"pixels": "x"}, {"pixels": "x", "text": "text"})[place % 3],
    ),
    Kind("lengths", lambda width: _lengths(InputSpec), _ragged, lambda place: _OF_TOKENS),
    Kind(
        "derived later",
        lambda width: (TEXT,),
        lambda rows: {"text": texts_of(rows)},
        lambda place: ({"text": "text"}, _OF_TOKENS, {**_OF_TOKENS, "text": "text"})[place % 3],
        (_TOKENS,),
    ),
    Kind(
        "derived at once",
        lambda width: (TEXT,),
        lambda rows: {"text": texts_of(rows)},
        lambda place: _OF_TOKENS,
        (_TOKENS,),
    ),
)
