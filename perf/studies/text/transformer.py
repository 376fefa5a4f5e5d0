"""Small BERT encoders with a mean over the words, trained from nothing on a CPU.

Their word vectors begin as those of latent semantic analysis, which takes seconds and needs no labels, so that it
reads more text than there are labelled rows.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as functional
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertModel

from export.from_torch import onnx_from_torch
from perf.studies.text.pairs import HashedPairs

MOST_TOKENS = 96
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
_BATCH = 64
_CHUNK = 256
# Rows of about the same length go together; within so many batches the order is free.
_POOL = 32
_MASKED = 0.1
# Of the vocabulary, in percent.
_SHARE_OF_WORDS = 60
# Of the numbers in a word's vector, at the start.
_SPREAD = 0.05
_LEAST_HALVED = 256
_FEW_BITS, _MATRIX = 8, 2
# Whole numbers in eight bits go from minus this to this.
_LARGEST = 127


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One size of encoder and how it is trained.

    Args:
        layers, width: of the encoder; heads are 32 wide, the inner layer is 4 times the width.
        epochs: passes over the labelled rows.
        learning_rate: the highest.
        weight_bits: of each number of a matrix where it is stored, 16 or 8.
        pair_bits: of the table of pairs of tokens beside the encoder; 0 for none.
        pair_share: how much the pairs' logits weigh.
    """

    layers: int
    width: int
    epochs: int
    learning_rate: float
    weight_bits: int = 16
    pair_bits: int = 0
    pair_share: float = 0.0

    def config(self, vocabulary: int) -> BertConfig:
        """As transformers has it."""
        return BertConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 32,
            intermediate_size=4 * self.width,
            max_position_embeddings=MOST_TOKENS,
            type_vocab_size=1,
            pad_token_id=PAD,
            attn_implementation="eager",
        )


def made_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A WordPiece tokeniser in lower case; it cuts what is longer than `MOST_TOKENS`.

    Its pieces are counted here: the trainer of the tokenizers package breaks ties in another way at each run.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
    )
    pieces = [*SPECIAL, *_pieces(words, vocabulary - len(SPECIAL))]
    tokenizer = Tokenizer(
        models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    tokenizer.enable_truncation(MOST_TOKENS)
    tokenizer.enable_padding(pad_id=PAD, pad_token="[PAD]")
    return tokenizer


def _pieces(words: Counter[str], most: int) -> list[str]:
    """Letters, the most frequent words, and the beginnings and ends of words that save the most letters."""
    letters, parts = Counter[str](), Counter[str]()
    for word, count in words.items():
        for place, letter in enumerate(word):
            letters[f"##{letter}" if place else letter] += count
        for cut in range(2, len(word)):
            parts[word[:cut]] += count * (cut - 1)
            parts[f"##{word[cut - 1 :]}"] += count * (len(word) - cut)
    found = dict.fromkeys(_first(letters, 300))
    found |= dict.fromkeys(_first(words, _SHARE_OF_WORDS * most // 100))
    for part in _first(parts, len(parts)):
        if len(found) >= most:
            break
        found.setdefault(part)
    return list(found)[:most]


def _first(counts: Counter[str], most: int) -> list[str]:
    """The most frequent, ties in the order of the alphabet."""
    return sorted(counts, key=lambda text: (-counts[text], text))[:most]


Ids = list[list[int]]


def ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> Ids:
    """The ids of each text, unpadded."""
    return [
        [token for token, kept in zip(one.ids, one.attention_mask, strict=True) if kept]
        for one in tokenizer.encode_batch(list(texts))
    ]


def padded(rows: Ids) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 (n, longest)."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


class MeanPooled(nn.Module):
    """An encoder, the mean over the tokens that the mask keeps, a linear head; maybe pairs of tokens beside it."""

    def __init__(self, config: BertConfig, classes: int) -> None:
        super().__init__()
        self.body = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(config.hidden_size, classes)
        self.pairs: HashedPairs | None = None

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What the encoder says of every token, float32 (n, length, width)."""
        return self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits (n, k) of ids and mask, int64 (n, length)."""
        kept = attention_mask.unsqueeze(-1).to(torch.float32)
        total = (self.hidden(input_ids, attention_mask) * kept).sum(dim=1)
        logits = self.head(self.dropout(total / kept.sum(dim=1).clamp(min=1)))
        return logits if self.pairs is None else logits + self.pairs(input_ids, attention_mask)


def word_vectors(rows: Ids, vocabulary: int, width: int) -> npt.NDArray[np.float32]:
    """Vectors of the ids, float32 (vocabulary, width): those that stand in the same texts lie near each other."""
    places = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    ids = np.concatenate([np.asarray(row) for row in rows])
    counts = sparse.coo_matrix((np.ones(len(ids), np.float32), (places, ids)), shape=(len(rows), vocabulary))
    weighted = TfidfTransformer().fit_transform(counts.tocsr())
    found = TruncatedSVD(width, random_state=0).fit(weighted)
    vectors = found.components_.T * np.sqrt(found.singular_values_)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(_SPREAD * np.sqrt(width) * vectors / np.maximum(length, 1e-6), np.float32)


def trained(
    encoder: Encoder,
    rows: Ids,
    targets: npt.NDArray[np.float32],
    *,
    vectors: npt.NDArray[np.float32],
    seed: int,
    progress: Callable[[str], None],
) -> MeanPooled:
    """A network in evaluation mode.

    Args:
        encoder: which one.
        rows: ids of n texts.
        targets: float32 (n, k), the distribution that each row is taught.
        vectors: float32 (vocabulary, width), what the ids' vectors begin as.
        seed: of the other weights, order, masked words and dropout.
        progress: told now and then.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = MeanPooled(encoder.config(len(vectors)), targets.shape[1]).train()
    with torch.no_grad():
        model.body.embeddings.word_embeddings.weight.copy_(torch.from_numpy(vectors))
    y = torch.from_numpy(targets)

    def loss(part: Sequence[int]) -> torch.Tensor:
        ids, mask = padded([rows[i] for i in part])
        dropped = (torch.rand(ids.shape, generator=generator) < _MASKED) & (ids > MASK)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids.masked_fill(dropped, MASK), mask)
        return functional.cross_entropy(logits.float(), y[list(part)])

    _fit(model, loss, list(_batches(rows, encoder.epochs, generator)), encoder.learning_rate, progress)
    with torch.no_grad():
        # What is written down, and what the graph then says, are these weights.
        for weight in model.parameters():
            few = encoder.weight_bits == _FEW_BITS and weight.ndim == _MATRIX
            weight.copy_(_in_few_bits(weight) if few else weight.half().float())
    return model.eval()


def _in_few_bits(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().max() / _LARGEST
    return (weight / scale).round() * scale


def _batches(rows: Ids, epochs: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Row numbers of each step: rows of about the same length together, the batches in any order."""
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        found = []
        for start in range(0, len(order), _BATCH * _POOL):
            pool = sorted(order[start : start + _BATCH * _POOL], key=lambda i: len(rows[i]))
            found += [pool[i : i + _BATCH] for i in range(0, len(pool), _BATCH)]
        for place in torch.randperm(len(found), generator=generator).tolist():
            yield found[place]


def _fit(
    model: MeanPooled,
    loss: Callable[[Sequence[int]], torch.Tensor],
    batches: Sequence[Sequence[int]],
    peak: float,
    progress: Callable[[str], None],
) -> None:
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=len(batches), pct_start=0.15)
    for step, part in enumerate(batches):
        optimiser.zero_grad()
        value = loss(part)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            progress(f"step {step} of {len(batches)}, loss {value.item():.3f}")


def logits_of(model: MeanPooled, rows: Ids) -> npt.NDArray[np.float32]:
    """float32 (n, k); rows of about the same length are asked together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = np.empty((len(rows), model.head.out_features), np.float32)
    for start in range(0, len(order), _CHUNK):
        part = order[start : start + _CHUNK]
        with torch.inference_mode():
            found[part] = model(*padded([rows[i] for i in part])).float().numpy()
    return found


def onnx_from_encoder(model: MeanPooled, *, weight_bits: int = 16) -> onnx.ModelProto:
    """The graph: input_ids and attention_mask INT64 (n, length) -> logits float32 (n, k).

    Its weights are kept in half precision, matrices of the encoder in `weight_bits`, and are made float32 again
    when the graph is loaded.
    """
    ids, mask = padded([[CLS, MASK + 1, SEP], [CLS, MASK + 1, MASK + 2, MASK + 3, SEP]])
    tensors = {"input_ids": ids, "attention_mask": mask}
    table = 0 if model.pairs is None else model.pairs.table.numel()
    proto = onnx_from_torch(model, tensors, varying=tuple(tensors))
    return with_small_weights(proto, lambda value: weight_bits == _FEW_BITS and value.size != table)


def with_small_weights(
    proto: onnx.ModelProto, in_few_bits: Callable[[npt.NDArray[np.float32]], bool]
) -> onnx.ModelProto:
    """A copy whose float32 weights of more than a few numbers are stored in half precision, each behind a Cast.

    Matrices for which `in_few_bits` are stored as whole numbers of eight bits and one scale.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes: list[onnx.NodeProto] = []
    scales: list[onnx.TensorProto] = []
    for weight in copy.graph.initializer:
        value, name = onnx.numpy_helper.to_array(weight), weight.name
        if value.dtype != np.float32 or value.size < _LEAST_HALVED:
            continue
        few = value.ndim == _MATRIX and in_few_bits(value)
        stored, cast = f"{name}_stored", f"{name}_cast" if few else name
        small = value.astype(np.float16)
        if few:
            scale = np.abs(value).max() / _LARGEST
            small = np.rint(value / scale).astype(np.int8)
            scales.append(onnx.numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}_scale"))
            nodes.insert(0, onnx.helper.make_node("Mul", [cast, f"{name}_scale"], [name]))
        nodes.insert(0, onnx.helper.make_node("Cast", [stored], [cast], to=onnx.TensorProto.FLOAT))
        weight.CopyFrom(onnx.numpy_helper.from_array(small, stored))
    copy.graph.initializer.extend(scales)
    nodes += copy.graph.node
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy
