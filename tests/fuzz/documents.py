"""Documents that nobody would write: good ones with a few parts changed, as hypothesis draws them."""

import copy
import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

# Values that programs trip over: at the edge of some type, of another type than expected, or no text.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 1 << 31, 1 << 63, -(1 << 63) - 1, 10**30, 10**320, 0.0, -0.0, 1e-320, 1e308,
    0.5, float("nan"), float("inf"), -float("inf"), "", " ", "\0", "a" * 300, "\ud800", "é\u202e", "../x", "nan",
    "/etc/passwd", "1", [], {}, [[]], [None], {"": None}, [0] * 40,
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.recursive(
        st.sampled_from(ODD),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    ),
)
_DTYPES = st.sampled_from(["f4", "f8", "f2", "i8", "i4", "u1", "u8", "?", "U3", "S3", "M8[D]", "c8", "O", "V4"])


@st.composite
def changed_bytes(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A document with some bytes set, put in, taken out, doubled, or taken from another document."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at, size = draw(st.integers(0, len(data))), draw(st.integers(1, 16))
        piece = draw(
            st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 4, b"\0" * 8, b"\x80", b"9" * 30])
        )
        end = draw(st.sampled_from([at, at + len(piece), at + size, len(data)]))
        if draw(st.booleans()):
            other = draw(st.sampled_from(seeds))
            start = draw(st.integers(0, len(other)))
            piece = other[start : start + size]
        data[at:end] = piece
    return bytes(data)


@st.composite
def changed_json(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A JSON document of which one to three values are replaced, removed or renamed."""
    document = json.loads(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        document = _edited(draw, document)
    return json.dumps(document).encode()


def _edited(draw: st.DrawFn, document: Any) -> Any:
    inner, parent, key = document, None, None
    while isinstance(inner, dict | list) and inner and (parent is None or draw(st.integers(0, 3))):
        parent = inner
        key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        inner = inner[key]
    # A copy, since later changes may go into it.
    value = copy.deepcopy(draw(VALUES))
    if parent is None or key is None:
        return value
    change = draw(st.sampled_from(["set", "set", "set", "remove", "add", "wrap"]))
    if change == "remove":
        del parent[key]
    elif change == "add" and isinstance(parent, dict):
        parent[draw(st.text(max_size=10))] = value
    elif change == "add":
        parent.append(value)
    else:
        parent[key] = [inner] if change == "wrap" else value
    return document


@st.composite
def archive(draw: st.DrawFn, names: Sequence[str]) -> bytes:
    """A `.npz` with some arrays of these names, of any dtype and shape, whose headers may lie."""
    buffer = io.BytesIO()
    packed = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    rows = draw(st.integers(1, 5))
    with zipfile.ZipFile(buffer, "w", packed) as stored:
        for name in draw(st.lists(st.sampled_from(names), unique=True)):
            ending = draw(st.sampled_from([".npy", ".npy", ".npy", ".npy", ""]))
            stored.writestr(f"{name}{ending}", draw(array_file(rows)))
    return buffer.getvalue()


@st.composite
def array_file(draw: st.DrawFn, rows: int = 3) -> bytes:
    """A `.npy` with any array, one of text, or one whose header says what is not so."""
    dtype = np.dtype(draw(_DTYPES))
    shape = draw(st.sampled_from([(), (rows,), (rows, 2), (rows, 3), (rows, 1, 8, 8), (0,), (0, 3), (1,)]))
    if dtype.kind in "OV" or draw(st.integers(0, 3)) == 0:
        array = np.full(shape, draw(st.sampled_from([0, 1, 2.5, "a", "\0", '{"members": []}', "{}"])))
    else:
        array = draw(numpy_st.arrays(dtype, shape))
    file = io.BytesIO()
    if draw(st.integers(0, 7)):
        np.save(file, array.astype(object) if dtype.kind == "O" else array)
        return file.getvalue()
    shape_said = draw(
        st.sampled_from(["(1000000000000,)", "(-1,)", "(3, 18446744073709551616)", "3", "(2, 2)", "()"])
    )
    kind = draw(st.sampled_from([array.dtype.str, "|O", "<f4", "<U99999999", "x"]))
    header = f"{{'descr': '{kind}', 'fortran_order': {draw(st.booleans())}, 'shape': {shape_said}, }}"
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + array.tobytes()


def timings() -> st.SearchStrategy[bytes]:
    """Timings of members a and b that are in order, with times that nobody measures."""
    ms = st.sampled_from([0.0, 0.001, 0.01]) | st.floats(0.001, 5) | st.floats(0.001, 86_400_000)
    added = st.floats(-2, 2) | st.floats(-86_400_000, 86_400_000)
    batch = st.integers(1, 64) | st.integers(1, 1 << 20)

    def calls(times: st.SearchStrategy[float], *, fewest: int) -> st.SearchStrategy[list[dict[str, float]]]:
        return st.dictionaries(batch, times, min_size=fewest, max_size=4).map(
            lambda found: [
                # Rows that come alone are batches of 1.
                {"batch": rows if place else 1, "ms": one, "low_ms": one, "high_ms": one}
                for place, (rows, one) in enumerate(sorted(found.items()))
            ]
        )

    members = [
        st.fixed_dictionaries({"name": st.just(name), "calls": calls(ms, fewest=1)}, optional={
            "instances": st.integers(1, 1024), "max_batch_size": batch,
        })
        for name in "ab"
    ]  # fmt: skip
    document = {
        "format": st.just(1),
        "asked": st.just("onnxruntime 1.0"),
        "machine": st.fixed_dictionaries({
            "cpu": st.just("a processor"), "cores": st.integers(1, 16) | batch, "platform": st.just("Linux"),
        }),
        "members": st.tuples(*members),
        "rounds": st.just(3),
        "first_stage": calls(added, fewest=0),
        "later_stage": calls(added, fewest=0),
    }  # fmt: skip
    return st.fixed_dictionaries(document).map(lambda found: json.dumps(found).encode())
