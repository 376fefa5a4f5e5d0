"""The docstrings members: trained on the fit part alone, exported, compared and written."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from export.cost.counting import COUNTER, parameters_of
from export.cost.lengths import FITTED, length_of
from export.deriving.tokenizer import tokenizer_model
from export.deriving.writing import write_deriving
from export.members import MODEL_FILE, is_current, packed, write_member
from export.parity import length_parity, parity_of
from export.sources import LoadedModel
from export.tensor_rows import TensorKind, TensorRows
from orchestrator.errors import ExportError
from orchestrator.graphs.editing import opset_of
from orchestrator.rows.docstrings import CLASSES, DocstringsSplit, docstrings_split, unlabelled_texts
from orchestrator.spec import Manifest, TensorSpec
from perf.studies.glyphs_members import check_exported_here, json_fields
from perf.studies.text.linear import Linear, logits_of_pipeline, onnx_from_pipeline
from perf.studies.text.pairs import trained_pairs
from perf.studies.text.teacher import targets_of
from perf.studies.text.transformer import (
    MOST_TOKENS,
    PAD,
    SPECIAL,
    Encoder,
    Ids,
    MeanPooled,
    ids_of,
    made_tokenizer,
    onnx_from_encoder,
    padded,
    trained,
    word_vectors,
)

# Cheapest first.
MEMBERS: dict[str, Linear | Encoder] = {
    "docstrings_linear": Linear(features=20_000, longest=2),
    "docstrings_tiny": Encoder(layers=1, width=64, epochs=8, learning_rate=3e-3),
    "docstrings_large": Encoder(
        layers=4, width=256, epochs=3, learning_rate=1e-3, weight_bits=8, pair_bits=16, pair_share=0.8
    ),
}
VOCABULARY = 8_000
# The model that makes the tokens which the encoders share.
TOKENIZER = "tokenizer_docstrings"
_SOURCE = "python -m perf text"
_PARITY_ROWS = 128
_LIBRARIES = ("scipy", "scikit-learn", "matplotlib")
_INPUTS = {"input_ids": PAD, "attention_mask": 0}


def training_settings(name: str, seed: int) -> dict[str, object]:
    """What decides the weights of a member, as the manifest keeps it."""
    about: dict[str, object] = {"data": "docstrings:fit", "seed": seed}
    if isinstance(MEMBERS[name], Encoder):
        about |= {"vocabulary": VOCABULARY}
    return about | json_fields(MEMBERS[name])


class FitData:
    """The fit part, and what is made of it, when it is first needed."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress

    @functools.cached_property
    def part(self) -> DocstringsSplit:
        """The rows."""
        self._progress("reading docstrings")
        return docstrings_split("fit")

    @functools.cached_property
    def _more(self) -> tuple[str, ...]:
        return unlabelled_texts()

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Made of the rows and on the other paragraphs of the libraries."""
        self._progress("making the tokeniser")
        return made_tokenizer([*self.part.texts, *self._more], VOCABULARY)

    @functools.cached_property
    def ids(self) -> Ids:
        """Of the rows."""
        return ids_of(self.tokenizer, self.part.texts)

    @functools.cached_property
    def targets(self) -> npt.NDArray[np.float32]:
        """What the encoders are taught."""
        self._progress("asking the teacher")
        docstrings = [row.rpartition(":")[0] for row in self.part.ids.tolist()]
        return targets_of(self.part.texts, self.part.labels, docstrings, len(CLASSES))

    def vectors(self, width: int) -> npt.NDArray[np.float32]:
        """What the words' vectors begin as."""
        rows = [*self.ids, *ids_of(self.tokenizer, self._more)]
        return word_vectors(rows, self.tokenizer.get_vocab_size(), width)


def export_text(
    repository: Path,
    *,
    only: Iterable[str] = (),
    seed: int = 0,
    force: bool = False,
    progress: Callable[[str], None],
) -> dict[str, str]:
    """Trains and writes every docstrings member that is not there yet, with `force` the others too.

    Args:
        repository: model repository to write into; the tokeniser goes there too.
        only: names of members; all where it is empty.
        seed: of weights, order, masked words and dropout.
        force: train again even where a member is up to date.
        progress: told what is being done.

    Returns:
        member name -> "trained in <n> s" or "up to date".

    Raises:
        ExportError: no such member, or the repository holds other models of these names.
        RepositoryError: the repository cannot be written.
        DataError: a library whose docstrings are needed is not installed.
    """
    wanted = _wanted(tuple(only))
    check_exported_here(repository, wanted, force=force)
    data = FitData(progress)
    done: dict[str, str] = {}
    for name in wanted:
        if not force and is_current(repository / name, training_settings(name, seed), field="training"):
            done[name] = "up to date"
            continue
        begun_s = time.monotonic()
        member = MEMBERS[name]
        if isinstance(member, Linear):
            progress(f"{name}: training")
            write_linear(repository, name, member, data, seed=seed)
        else:
            network = _trained(name, member, data, seed=seed, progress=progress)
            progress(f"{name}: exporting")
            write_encoder(repository, name, member, network, data, seed=seed)
        done[name] = f"trained in {time.monotonic() - begun_s:.0f} s"
    return done


def _wanted(only: tuple[str, ...]) -> list[str]:
    if unknown := [name for name in only if name not in MEMBERS]:
        expected = f"some of {', '.join(MEMBERS)}"
        raise ExportError("docstrings members", got=", ".join(unknown), expected=expected, fix="check --only")
    return [name for name in MEMBERS if not only or name in only]


def _trained(
    name: str, encoder: Encoder, data: FitData, *, seed: int, progress: Callable[[str], None]
) -> MeanPooled:
    ids, targets, vectors = data.ids, data.targets, data.vectors(encoder.width)
    network = trained(
        encoder, ids, targets, vectors=vectors, seed=seed, progress=lambda text: progress(f"{name}: {text}")
    )
    if encoder.pair_bits:
        progress(f"{name}: pairs of tokens")
        labels = data.part.labels
        network.pairs = trained_pairs(ids, labels, bits=encoder.pair_bits, share=encoder.pair_share)
    return network


def write_linear(repository: Path, name: str, member: Linear, data: FitData, *, seed: int) -> None:
    """Trains and writes a linear member; ExportError where the graph says something else."""
    pipeline = member.trained(data.part.texts, data.part.labels)
    proto = onnx_from_pipeline(pipeline)
    rows = np.array(data.part.texts[:_PARITY_ROWS], object)[:, None]

    def reference(part: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return logits_of_pipeline(pipeline, part[:, 0].tolist())

    parity = parity_of(proto.SerializeToString(deterministic=True), reference, rows, input_name="text")
    _write(
        repository,
        name,
        proto,
        seed=seed,
        inputs=(TensorSpec(name="text", dtype="STRING", dims=(1,)),),
        # Each word of a text looks a row of weights up; the graph multiplies by all of them.
        macs=float(member.features * len(CLASSES)),
        macs_counter="the dense layer",
        parity=parity.as_json(),
        versions=_versions("skl2onnx", *_LIBRARIES),
    )


def write_encoder(
    repository: Path, name: str, member: Encoder, network: MeanPooled, data: FitData, *, seed: int
) -> None:
    """Writes a trained encoder, and its tokeniser; ExportError where the graph says something else."""
    proto = onnx_from_encoder(network, weight_bits=member.weight_bits)
    rows = _few_rows(data)
    kinds = [
        TensorKind(spec=_tensor(one), pad=pad, below=VOCABULARY, is_mask=one == "attention_mask")
        for one, pad in _INPUTS.items()
    ]
    loaded = LoadedModel(kinds=tuple(kinds), longest=MOST_TOKENS)

    def reference(part: TensorRows) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            said: npt.NDArray[np.float32] = network(*map(torch.from_numpy, part.arrays.values())).numpy()
        return said

    with packed(proto, repository) as stored:
        lengths = length_parity(stored.path, reference, loaded, rows, subject=name)
        parity = parity_of(stored.path, reference, rows).as_json() | lengths
    length = length_of(proto, kinds, longest=MOST_TOKENS)
    _write(
        repository,
        name,
        proto,
        seed=seed,
        inputs=tuple(map(_tensor, _INPUTS)),
        macs=length.macs(length.macs_at),
        macs_counter=COUNTER + FITTED,
        length=length,
        parity=parity,
        versions=_versions("torch", "transformers", "tokenizers", *_LIBRARIES),
    )
    write_tokenizer(data.tokenizer, repository)


def write_tokenizer(tokenizer: Tokenizer, repository: Path) -> None:
    """Writes a tokeniser as a model of the repository; longer texts are cut. ExportError where a name is taken."""
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    with TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=MOST_TOKENS,
            **{f"{name}_token": text for name, text in special.items()},
        ).save_pretrained(folder)
        made = tokenizer_model(f"hf:{folder}", name=TOKENIZER)
    write_deriving(repository, dataclasses.replace(made, source=_SOURCE), force=False)


def _few_rows(data: FitData) -> TensorRows:
    few = data.ids[:_PARITY_ROWS]
    arrays: Mapping[str, Any] = dict(zip(_INPUTS, (one.numpy() for one in padded(few)), strict=True))
    return TensorRows(arrays=arrays, lengths=np.array([len(row) for row in few]), pad=_INPUTS)


def _tensor(name: str) -> TensorSpec:
    return TensorSpec(name=name, dtype="INT64", dims=(-1,))


def _versions(*names: str) -> dict[str, str]:
    return {name: version(name) for name in (*names, "onnx", "onnxruntime")}


def _write(repository: Path, name: str, proto: onnx.ModelProto, *, seed: int, **fields: Any) -> None:
    with packed(proto, repository) as stored:
        manifest = Manifest(
            name=name,
            file=MODEL_FILE,
            sha256=stored.sha256,
            source=_SOURCE,
            precision="fp32",
            opset=opset_of(proto),
            output=TensorSpec(name="logits", dtype="FP32", dims=(len(CLASSES),)),
            output_kind="logits",
            parameters=parameters_of(proto),
            labels=CLASSES,
            training=training_settings(name, seed),
            **fields,
        )
        write_member(repository, stored, manifest)
