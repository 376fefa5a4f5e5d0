"""Classifiers of tables: scikit-learn, LightGBM and XGBoost, through their converters to ONNX.

The converted graph then goes the way of any ONNX file; what it is compared with is the framework's own
`predict_proba`, on rows around the values that the model decides by.
"""

import dataclasses
import importlib.metadata
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
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
    table_rows,
)
from export.sources.onnx_tensors import BATCH
from export.tensor_rows import TensorKind
from orchestrator.errors import ExportError, first_line
from orchestrator.graphs import editing
from orchestrator.graphs.combining import OPSET
from orchestrator.repository.files import sha256_of_path
from orchestrator.spec import TensorSpec

FEATURES, PROBABILITIES = "features", "probabilities"
_MISSING = "nodes_missing_value_tracks_true"
# Objectives of LightGBM and XGBoost that give a probability for every class.
_OBJECTIVES = (
    "binary", "multiclass", "multiclassova", "binary:logistic", "multi:softprob", "multi:softmax",
)  # fmt: skip
OPSETS = {"": OPSET, "ai.onnx.ml": 3}


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
    _require_classes(classifier, subject)
    _require_ignoring(classifier, subject)
    columns = _columns(classifier)
    if type(classifier).__name__ == "XGBClassifier":
        # Its converter knows no names but f0, f1 and so on.
        classifier.get_booster().feature_names = None
    ask = _probabilities_of(classifier, subject)
    if sklearn_text.reads_text(classifier):
        return _loaded_text(classifier, ask, subject, options)
    count = _feature_count(classifier, subject)
    taken = _taken(FEATURES, "FP32", count, options, subject)
    with _conversion(classifier, subject):
        proto = _converted(classifier, count)
    draw = table_rows.rows_around(proto.graph, classifier, ask, count)
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
        remedy=_remedy(classifier),
        versions=_versions(classifier),
        original=loaded.original,
        columns=columns,
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
        remedy=sklearn_text.remedy_of(classifier),
        versions=_versions(classifier),
        original={"changes": sklearn_text.changes_of(classifier)},
    )


def _require_classes(classifier: Any, subject: str) -> None:
    """Raises ExportError for boosters of something else than classes, which their files do not tell apart."""
    found = None
    if type(classifier).__name__ == "Booster":
        # LightGBM names the objective with its settings, "binary sigmoid:1".
        found = str(classifier.dump_model(num_iteration=1).get("objective") or "one of its own").split()[0]
    elif type(classifier).__name__ == "XGBClassifier":
        config = json.loads(classifier.get_booster().save_config())
        found = config["learner"]["objective"]["name"]
    if found not in (None, *_OBJECTIVES):
        got = f"trees with the objective {found}"
        fix = "train them with one of these"
        raise ExportError(subject, got=got, expected=f"a classifier: {', '.join(_OBJECTIVES)}", fix=fix)


def _require_ignoring(classifier: Any, subject: str) -> None:
    """Raises ExportError for one-hot encoders whose graphs fail for a batch with a category they do not know."""
    parts = list(table_rows.parts_of(classifier))
    # KBinsDiscretizer has one for its bins, in one of which any number lies.
    of_bins = [getattr(part, "_encoder", None) for part in parts]
    for part in parts:
        is_strict = type(part).__name__ == "OneHotEncoder" and part.handle_unknown == "error"
        if is_strict and not any(part is one for one in of_bins):
            got, expected = "OneHotEncoder with handle_unknown='error'", "one that takes every category"
            raise ExportError(subject, got=got, expected=expected, fix="fit it with handle_unknown='ignore'")


def _remedy(classifier: Any) -> str:
    """What may be done where the conversion of a classifier says something else."""
    boosters = [getattr(part, "booster_", part) for part in table_rows.parts_of(classifier)]
    texts = [one.model_to_string() for one in boosters if hasattr(one, "model_to_string")]
    if any("[zero_as_missing: 1]" in text for text in texts):
        return "fit it on NaN for what is missing; its conversion to ONNX does not keep zero_as_missing"
    if any(np.any(getattr(part, "is_categorical_", False)) for part in table_rows.parts_of(classifier)):
        said = "its conversion to ONNX compares categories as numbers"
        return f"{said}: fit it without categorical_features, behind OneHotEncoder or OrdinalEncoder"
    if found := table_rows.stand_ins(classifier):
        said = ", ".join(f"{one:g}" for one in found)
        return f"fit it on NaN for what is missing; its conversion to ONNX may not keep {said} for that"
    return "its conversion to ONNX lacks a setting or a step; let SimpleImputer fill in missing values"


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


def _columns(classifier: Any) -> tuple[str, ...]:
    """The names of the columns it was fitted on, in order; none where its package made them up."""
    found = getattr(classifier, "feature_names_in_", None)
    if type(classifier).__name__ == "Booster":
        found = classifier.feature_name()
    elif type(classifier).__name__ == "XGBClassifier":
        found = classifier.get_booster().feature_names
    names = tuple(map(str, () if found is None else found))
    return () if names == tuple(f"Column_{place}" for place in range(len(names))) else names


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
    _keep_missing(found.graph, classifier)
    return found


def _keep_missing(graph: onnx.GraphProto, classifier: Any) -> None:
    """Says in place which way missing values take through trees of scikit-learn; its converter leaves that out."""
    last = [classifier, *_steps(classifier)][-1]
    trees = [one.tree_ for one in getattr(last, "estimators_", [last]) if hasattr(one, "tree_")]
    nodes = [node for node in graph.node if node.op_type in table_rows.TREES]
    if not trees or len(nodes) != 1:
        return
    known = table_rows.attributes_of(nodes[0])
    keys = list(zip(known["nodes_treeids"], known["nodes_nodeids"], strict=True))
    if sorted(keys) != [(i, k) for i, tree in enumerate(trees) for k in range(tree.node_count)]:
        return
    tracks = [int(trees[i].missing_go_to_left[k]) for i, k in keys]
    kept = [part for part in nodes[0].attribute if part.name != _MISSING]
    del nodes[0].attribute[:]
    nodes[0].attribute.extend([*kept, onnx.helper.make_attribute(_MISSING, tracks)])


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


def _work(graph: onnx.GraphProto, classifier: Any, count: int) -> tuple[float | None, str]:
    """Work per row that the graph's operators do not show, and what it counts; None where they do."""
    if levels := _levels(graph):
        return levels, "levels of the trees, the deepest path of each: comparisons"
    if any(hasattr(classifier, name) for name in table_rows.KEPT[:2]):
        return float(table_rows.kept_rows(classifier, count)[0].size), "values that a row is compared with"
    if any(hasattr(step, "transformers_") for step in _steps(classifier)):
        # onnx does not infer the sizes of what a ColumnTransformer puts together.
        return sklearn_text.words_work(graph), "coefficients of a linear model; making its columns is not counted"
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
        if node.op_type not in table_rows.TREES:
            continue
        known = table_rows.attributes_of(node)
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
