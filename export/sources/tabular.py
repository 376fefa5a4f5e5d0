"""Classifiers of tables: scikit-learn, LightGBM and XGBoost, through their converters to ONNX.

The converted graph then goes the way of any ONNX file; what it is compared with is the framework's own
`predict_proba`, on rows around the values that the model decides by.
"""

import dataclasses
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from skl2onnx import to_onnx, update_registered_converter
from skl2onnx.common.data_types import FloatTensorType
from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes

from export.sources import (
    ExportOptions,
    LoadedModel,
    Rows,
    SourceRef,
    member_name,
    onnx_file,
    renamed_inputs,
    sklearn_text,
)
from export.sources.onnx_tensors import BATCH
from export.tensor_rows import TensorKind
from orchestrator.errors import ExportError, first_line
from orchestrator.graphs import editing
from orchestrator.graphs.combining import OPSET
from orchestrator.repository.files import sha256_of_path
from orchestrator.spec import TensorSpec

FEATURES, PROBABILITIES = "features", "probabilities"
OPSETS = {"": OPSET, "ai.onnx.ml": 3}
_TREES = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")


def identify_sklearn(what: str, options: ExportOptions) -> SourceRef:
    """Which classifier `sklearn:<file>` means, stored by joblib or pickle; ExportError where there is none.

    Reading such a file runs code in it.
    """
    return _source(f"sklearn:{what}", Path(what), options, _unpickled)


def identify_lightgbm(what: str, options: ExportOptions) -> SourceRef:
    """Which trees `lightgbm:<file>` means, a text file of `save_model`; ExportError where there are none."""
    return _source(f"lightgbm:{what}", Path(what), options, _lightgbm)


def identify_xgboost(what: str, options: ExportOptions) -> SourceRef:
    """Which trees `xgboost:<file>` means, JSON or UBJSON of `save_model`; ExportError where there are none."""
    return _source(f"xgboost:{what}", Path(what), options, _xgboost)


def _source(subject: str, path: Path, options: ExportOptions, read: Callable[[Path], Any]) -> SourceRef:
    if not path.is_file():
        raise ExportError(subject, got="no such file", expected="a stored classifier")

    def load() -> LoadedModel:
        with warnings.catch_warnings():
            # About versions, and columns without names; the comparison with the framework is what counts.
            warnings.simplefilter("ignore")
            try:
                classifier = read(path)
            except ImportError:
                raise
            # Unpickling runs code of any package, and the boosters have errors of their own.
            except Exception as error:
                got = f"a file that does not load ({type(error).__name__}: {first_line(error)})"
                raise ExportError(subject, got=got, expected="a stored classifier") from error
            return _loaded(classifier, subject, options)

    return SourceRef(
        text=subject,
        name=member_name(path.stem),
        files={path.name: sha256_of_path(path)},
        load=load,
        image_px=lambda: None,
    )


def _unpickled(path: Path) -> Any:
    import joblib  # optional

    return joblib.load(path)


def _lightgbm(path: Path) -> Any:
    import lightgbm  # optional

    return lightgbm.Booster(model_file=str(path))


def _xgboost(path: Path) -> Any:
    import xgboost  # optional

    found = xgboost.XGBClassifier()
    found.load_model(path)
    return found


@contextmanager
def _conversion(classifier: Any, subject: str) -> Iterator[None]:
    """Turns whatever a converter raises into one line."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        got = f"{type(classifier).__name__}, which its converter to ONNX refuses ({first_line(error)})"
        fix = "fit it on an array of numbers or on texts, with steps that skl2onnx knows"
        raise ExportError(subject, got=got, expected="a classifier of numbers or of text", fix=fix) from error


def _loaded(classifier: Any, subject: str, options: ExportOptions) -> LoadedModel:
    if options.random_weights:
        raise ExportError(
            subject, got="`random_weights`", expected="the classifier of the file", fix="leave it out"
        )
    ask = _probabilities_of(classifier, subject)
    if sklearn_text.reads_text(classifier):
        return _loaded_text(classifier, ask, subject, options)
    count = _feature_count(classifier, subject)
    taken = _taken(FEATURES, "FP32", count, options, subject)
    with _conversion(classifier, subject):
        proto = _converted(classifier, count)
    draw = _around(proto.graph, classifier, count)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "converted.onnx"
        path.write_bytes(proto.SerializeToString())
        plain = dataclasses.replace(options, inputs={}, pads={}, max_length=None)
        loaded = onnx_file.load_onnx(path, subject, plain, output_name=PROBABILITIES)
    assert loaded.proto is not None
    editing.rename_tensors(loaded.proto.graph, {onnx_file.INPUT: taken.name})
    _declare_scaled(loaded.proto.graph, count)
    macs, counter = _work(proto.graph, classifier, count)
    return LoadedModel(
        proto=loaded.proto,
        input_name=taken.name,
        dims=loaded.dims,
        labels=_labels(classifier),
        reference=lambda rows: ask(rows),
        rows=draw,
        output_kind=PROBABILITIES,
        macs=macs,
        macs_counter=counter,
        versions=_versions(classifier),
        original=loaded.original,
    )


def _taken(name: str, dtype: str, size: int, options: ExportOptions, subject: str) -> TensorSpec:
    """The member's only input, under the name that was asked for."""
    kind = TensorKind(spec=TensorSpec(name=name, dtype=dtype, dims=(size,)))
    return renamed_inputs((kind,), options.inputs, subject=subject)[0].spec


def _loaded_text(
    classifier: Any, ask: Callable[[Rows], Rows], subject: str, options: ExportOptions
) -> LoadedModel:
    taken = _taken(sklearn_text.TEXT, "STRING", 1, options, subject)
    with _conversion(classifier, subject):
        proto = sklearn_text.graph_of_text(classifier, taken.name, PROBABILITIES, opsets=OPSETS)
    macs = sklearn_text.words_work(proto.graph)
    counter = "coefficients of a linear model, every one; splitting text into words is not counted"
    if macs is None:
        macs, counter = _work(proto.graph, classifier, 0)
    return LoadedModel(
        proto=proto,
        input_name=taken.name,
        dims=taken.dims,
        dtype=taken.dtype,
        labels=_labels(classifier),
        reference=lambda rows: ask(rows.ravel()),
        rows=sklearn_text.texts_of(classifier),
        output_kind=PROBABILITIES,
        macs=macs,
        macs_counter=counter,
        versions=_versions(classifier),
    )


def _probabilities_of(classifier: Any, subject: str) -> Callable[[Rows], Rows]:
    """The framework's own answer to float32 (n, f): float32 (n, k); a booster gives two classes in one column."""
    asked = getattr(classifier, "predict_proba", None) or (
        classifier.predict if type(classifier).__name__ == "Booster" else None
    )
    if asked is None:
        fix = "train one that has it; CalibratedClassifierCV gives it to others"
        raise ExportError(
            subject, got=type(classifier).__name__, expected="a classifier with predict_proba", fix=fix
        )

    def ask(rows: Rows) -> Rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = np.asarray(asked(rows), np.float32)
        return np.stack([1 - said, said], axis=1) if said.ndim == 1 else said

    return ask


def _feature_count(classifier: Any, subject: str) -> int:
    if callable(number := getattr(classifier, "num_feature", None)):
        return int(number())
    found = getattr(classifier, "n_features_in_", None)
    if found is None:
        got = f"{type(classifier).__name__} without n_features_in_"
        raise ExportError(subject, got=got, expected="a classifier that was fitted on an array of numbers")
    return int(found)


def _converted(classifier: Any, count: int) -> onnx.ModelProto:
    if type(classifier).__name__ == "Booster":
        # Optional, as LightGBM is.
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType as Floats

        kind = Floats([None, count])
        made: onnx.ModelProto = convert_lightgbm(
            classifier, initial_types=[(FEATURES, kind)], zipmap=False, target_opset=15
        )
        return made
    _register_boosters()
    found: onnx.ModelProto = to_onnx(
        classifier,
        initial_types=[(FEATURES, FloatTensorType([None, count]))],
        options={"zipmap": False},
        target_opset=OPSETS,
    )
    return found


def _register_boosters() -> None:
    """Teaches skl2onnx the classifiers of both packages, also as steps of a pipeline, where they are installed."""
    options = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    shapes = calculate_linear_classifier_output_shapes
    try:
        # Optional.
        from lightgbm import LGBMClassifier
        from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
    except ImportError:
        pass
    else:
        update_registered_converter(
            LGBMClassifier, "LightGbmLGBMClassifier", shapes, convert_lightgbm, options=options
        )
    try:
        # Optional.
        from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
        from xgboost import XGBClassifier
    except ImportError:
        pass
    else:
        update_registered_converter(
            XGBClassifier, "XGBoostXGBClassifier", shapes, convert_xgboost, options=options
        )


def _labels(classifier: Any) -> tuple[str, ...] | None:
    """Class names in order; None where they are the numbers from 0 on, or nothing says."""
    classes = getattr(classifier, "classes_", None)
    if classes is None or list(classes) == list(range(len(classes))):
        return None
    return tuple(map(str, classes))


def _versions(classifier: Any) -> dict[str, str]:
    packages = {"scikit-learn", "skl2onnx"}
    packages |= {
        package
        for package in ("lightgbm", "xgboost")
        if any(package in type(step).__module__ for step in (classifier, *_steps(classifier)))
    }
    # XGBoost is also packaged as xgboost-cpu.
    installed = importlib.metadata.packages_distributions()
    names = {"scikit-learn": "sklearn"}
    return {
        package: importlib.metadata.version(installed[names.get(package, package)][0])
        for package in sorted(packages)
    }


def _steps(classifier: Any) -> list[Any]:
    return [step for _, step in getattr(classifier, "steps", [])]


# -- what the graph decides by ---------------------------------------------------------------------------


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {part.name: onnx.helper.get_attribute_value(part) for part in node.attribute}


# What classifiers keep of the rows they were fitted on, (m, f); the work of the first two is going through it.
_KEPT = ("_fit_X", "theta_", "support_vectors_", "means_")
Range = tuple[npt.NDArray[Any], npt.NDArray[Any]]


def _around(graph: onnx.GraphProto, classifier: Any, count: int) -> Callable[[int, int], Rows]:
    """A function that draws n rows float32 (n, f), by a seed, from around the values a model compares them with.

    Trees and scalers that read the features themselves say where these lie, or what a classifier keeps of its
    rows; other columns are around 0. Rows from anywhere else would all take the same way through a tree, and any
    two trees would agree on them.
    """
    ranges = [(kept.min(axis=0), kept.max(axis=0)) for kept in _kept(classifier, count)]
    ranges += _ranges_in(graph, count)
    low = np.min([np.full(count, np.inf), *(one for one, _ in ranges)], axis=0)
    high = np.max([np.full(count, -np.inf), *(one for _, one in ranges)], axis=0)
    centre, spread = np.zeros(count), np.ones(count)
    known = low <= high
    centre[known] = (low[known] + high[known]) / 2
    spread[known] = (high[known] - low[known]) / 2 + 0.01 * np.abs(centre[known])
    spread[spread == 0] = 1

    def draw(n: int, seed: int) -> npt.NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        rows: npt.NDArray[np.float32] = (centre + spread * rng.normal(size=(n, count))).astype(np.float32)
        return rows

    return draw


def _kept(classifier: Any, count: int) -> list[npt.NDArray[Any]]:
    found = [np.asarray(getattr(classifier, name, ())) for name in _KEPT]
    return [kept for kept in found if kept.ndim == 2 and kept.dtype.kind == "f" and kept.shape[1] == count]


def _ranges_in(graph: onnx.GraphProto, count: int) -> list[Range]:
    """Lowest and highest values, (f,), that nodes of a graph hold features against; infinite where they do not."""
    given, ranges = {FEATURES}, []
    for node in graph.node:
        if not node.input or node.input[0] not in given:
            continue
        known = _attributes(node)
        if node.op_type in ("Cast", "Identity"):
            given.add(node.output[0])
        elif node.op_type == "Scaler":
            offset, scale = (np.broadcast_to(np.array(known[name]), count) for name in ("offset", "scale"))
            ranges.append((offset - 1 / scale, offset + 1 / scale))
        elif node.op_type in _TREES:
            inner = np.array(known["nodes_modes"]) != b"LEAF"
            features, values = (np.array(known[name])[inner] for name in ("nodes_featureids", "nodes_values"))
            low, high = np.full(count, np.inf), np.full(count, -np.inf)
            np.minimum.at(low, features, values)
            np.maximum.at(high, features, values)
            ranges.append((low, high))
    return ranges


def _work(graph: onnx.GraphProto, classifier: Any, count: int) -> tuple[float | None, str]:
    """Work per row that the graph's operators do not show, and what it counts; None where they do."""
    if levels := _levels(graph):
        return levels, "levels of the trees, the deepest path of each: comparisons"
    if any(hasattr(classifier, name) for name in _KEPT[:2]):
        return float(_kept(classifier, count)[0].size), "values that a row is compared with"
    return None, ""


def _declare_scaled(graph: onnx.GraphProto, count: int) -> None:
    """Declares shapes in place that onnx does not infer and work is counted by: those of scaled features."""
    known = {graph.input[0].name}
    for node in graph.node:
        if node.op_type in ("Scaler", "Imputer") and node.input[0] in known:
            known.add(node.output[0])
            value = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [BATCH, count])
            graph.value_info.append(value)


def _levels(graph: onnx.GraphProto) -> int:
    """Comparisons on the deepest path of every tree of a graph, added up; 0 without trees."""
    total = 0
    for node in graph.node:
        if node.op_type not in _TREES:
            continue
        known = _attributes(node)
        keys = list(zip(known["nodes_treeids"], known["nodes_nodeids"], strict=True))
        leaf = {key: mode == b"LEAF" for key, mode in zip(keys, known["nodes_modes"], strict=True)}
        below = {
            key: [(key[0], one) for one in pair]
            for key, pair in zip(
                keys, zip(known["nodes_truenodeids"], known["nodes_falsenodeids"], strict=True), strict=True
            )
        }
        roots = set(keys) - {one for key, pair in below.items() if not leaf[key] for one in pair}
        for root in roots:
            depth, row = 0, [root]
            while row := [one for key in row if not leaf[key] for one in below[key]]:
                depth += 1
            total += depth
    return total
