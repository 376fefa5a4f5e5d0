"""The configurations of rendered models, and a person's settings in them; `orchestrator.pbtxt` makes the text.

The plan decides what is served: names, tensors, the batch limit, the steps of an ensemble. How the server runs it
(version policy, instances, queue delay and so on) is up to the person who edits the file, and the next rendering
keeps it.

Rejected alternative: leaving `instance_group` out. In GPU builds Triton then starts one copy of a Python model
per GPU, and two of an ONNX model per CPU.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path, PurePosixPath

from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.grpc.model_config_pb2 import ModelConfig

from orchestrator.errors import RepositoryError
from orchestrator.graphs.combining import averaging_name, scores_name
from orchestrator.pbtxt import (
    comments_in,
    config_from_text,
    differences,
    is_hash_of,
    line_of_field,
    text_from_config,
    text_from_path,
    values_of_field,
    with_fields,
)
from orchestrator.repository.files import may_replace
from orchestrator.spec import CascadeSpec, InputSpec, Manifest, TensorSpec, json_from_cascade
from orchestrator.spec.answer import ANSWER_COLUMNS
from orchestrator.spec.cascade import PLAN_SHA256
from orchestrator.spec.deriving import DerivingManifest
from orchestrator.spec.output_kind import PARAMETER
from orchestrator.spec.triton import ANY_VERSION, BACKEND_OF_FILE, ENSEMBLE

ENDINGS = (".onnx", ".plan")  # of the model files that configurations are written for
HEURISTIC = "1"  # Triton's number for cuDNN's own choice of a convolution's algorithm, without timing them
LABELS = "labels.txt"
AVERAGING_VERSION = 1  # of the model that is the last step of an ensemble
# Fields that a person may edit without changing what is served.
TUNABLE = frozenset({
    "dynamic_batching", "parameters", "optimization", "version_policy", "instance_group", "metric_tags",
    "model_metrics",
})  # fmt: skip


def triton_type(dtype: str) -> str:
    """The config's name of a Triton dtype, "FP32" -> "TYPE_FP32"; RepositoryError where there is no such dtype."""
    name = "TYPE_STRING" if dtype == "BYTES" else f"TYPE_{dtype}"
    if name not in pb.DataType.keys():  # noqa: SIM118 - an enum wrapper, it has no __contains__
        known = ", ".join(word.removeprefix("TYPE_") for word in pb.DataType.keys()[1:])
        raise RepositoryError("tensor dtype", got=dtype, expected=f"one of {known}")
    return name


def member_config(manifest: Manifest, *, device: str = "cpu") -> pb.ModelConfig:
    """The configuration of an exported member on a "cpu" or "gpu".

    Both warm the model up with the smallest batch, so that no client waits for the work of a session's first run.
    On a GPU the largest batch is run too, of the longest rows, so that its memory is taken then.

    Raises:
        RepositoryError: a model file of a kind no backend here reads, or an unknown dtype.
    """
    if PurePosixPath(manifest.file).suffix not in ENDINGS:
        raise RepositoryError(
            f"member {manifest.name}",
            got=f"model file {manifest.file}",
            expected=f"one ending in {' or '.join(ENDINGS)}",
            fix="write its config.pbtxt by hand",
        )
    with _representable(f"manifest {manifest.name}"):
        return _member_config(manifest, device)


def _member_config(manifest: Manifest, device: str) -> pb.ModelConfig:
    file, output = PurePosixPath(manifest.file), manifest.output
    usual_name = f"model{file.suffix}"
    backend = BACKEND_OF_FILE[usual_name]
    on_gpu = device == "gpu" or backend == "tensorrt"
    config = pb.ModelConfig(
        name=manifest.name,
        backend=backend,
        max_batch_size=manifest.max_batch_size,
        input=[_input(one) for one in manifest.inputs],
        output=[pb.ModelOutput(name=output.name, data_type=triton_type(output.dtype), dims=output.dims)],
        instance_group=[_instances("gpu" if on_gpu else "cpu")],
        dynamic_batching=pb.ModelDynamicBatching(),
    )
    # The protocol has no field for it, and clients and `record --url` must not guess.
    config.parameters[PARAMETER].string_value = manifest.output_kind
    if file.name != usual_name:
        config.default_model_filename = file.name
    if backend == "onnxruntime":
        # Parallelism comes from instances and batches; several pools of ONNX Runtime threads would compete for the
        # cores. On a GPU they have hardly any work, and the default is a pool as wide as the machine per instance.
        config.parameters["intra_op_thread_count"].string_value = "1"
    if backend == "onnxruntime" and on_gpu:
        # The default, EXHAUSTIVE, times every algorithm for every new shape, and under dynamic batching each batch
        # size is a new shape. The first request of every size would wait for that, and another algorithm, with
        # other last bits of answers, might win at the next start. The setting is a parameter and not part of an
        # accelerator's entry because the backend overwrites such entries as soon as there are parameters.
        config.parameters["cudnn_conv_algo_search"].string_value = HEURISTIC
    # No `cc_model_filenames`: engines are built where they are served, so a folder holds the engine of its own
    # GPU, which the manifest names.
    config.model_warmup.extend(_warmup(manifest, on_gpu=on_gpu))
    return config


def _warmup(manifest: Manifest, *, on_gpu: bool) -> list[pb.ModelWarmup]:
    """Requests of zeros; none for a member with a free size that is no length which its manifest knows."""
    length = manifest.length
    free = {one.name for one in manifest.inputs if -1 in one.dims}
    if any(one.dims.count(-1) > 1 for one in manifest.inputs) or not free <= set(length.pad if length else ()):
        return []
    # A usual row, the one whose work the manifest names, and on a GPU the most that a request may bring.
    runs = {_smallest_batch(manifest): length and length.macs_at}
    if on_gpu:
        runs[manifest.max_batch_size] = length and length.longest
    made = []
    for batch, positions in sorted(runs.items()):
        zeros = {
            one.name: pb.ModelWarmup.Input(
                data_type=triton_type(one.dtype),
                dims=[positions if size == -1 else size for size in one.dims],
                zero_data=True,
            )
            for one in manifest.inputs
        }
        made.append(pb.ModelWarmup(name=f"batch_{batch}", batch_size=batch, count=1, inputs=zeros))
    return made


def deriving_config(manifest: DerivingManifest) -> pb.ModelConfig:
    """The configuration of an exported model that derives tensors: a Python model, one CPU instance.

    Raises:
        RepositoryError: an unknown dtype, or a number that is too large for Triton.
    """
    with _representable(f"manifest {manifest.name}"):
        return pb.ModelConfig(
            name=manifest.name,
            backend=BACKEND_OF_FILE["model.py"],
            max_batch_size=manifest.max_batch_size,
            input=map(_input, manifest.inputs),
            output=[
                pb.ModelOutput(name=one.name, data_type=triton_type(one.dtype), dims=one.dims)
                for one in manifest.outputs
            ],
            instance_group=[_instances("cpu")],
            dynamic_batching=pb.ModelDynamicBatching(),
        )


def cascade_config(spec: CascadeSpec) -> pb.ModelConfig:
    """The configuration of a cascade: a Python model, one CPU instance.

    The response cache stays off: its key ignores request parameters, so a request could get the answer to another
    policy. `model_warmup` is left out: calls to members are refused until the whole server is ready.

    Raises:
        RepositoryError: a number is too large for Triton.
    """
    with _representable(f"cascade {spec.name}"):
        # No queue policy: with `default_queue_policy { max_queue_size }` the batcher of 24.10 now and then
        # misses a wake-up, and every request in its queue waits for its 500 ms timer (p99 of the digits
        # cascade at 16 in flight: 510 ms in about a third of the passes with it, 25 ms without). The runtime's
        # admission limit bounds the deferred rows.
        return pb.ModelConfig(
            name=spec.name,
            backend="python",
            max_batch_size=spec.limits.max_batch_size,
            input=[_input(one, is_ragged=one.length_axis is not None) for one in spec.inputs],
            output=_outputs(spec),
            instance_group=[_instances("cpu")],
            dynamic_batching=pb.ModelDynamicBatching(),
            parameters=_plan_parameter(spec),
        )


def ensemble_config(spec: CascadeSpec, *, max_batch_size: int) -> pb.ModelConfig:
    """The configuration of Triton's own ensemble for a single-stage plan: members side by side, then the mean.

    Its `max_batch_size` is the smallest limit of a member, since Triton never splits a batch of an ensemble.

    Raises:
        RepositoryError: a number is too large for Triton.
    """
    with _representable(f"ensemble {spec.name}"):
        steps = [
            pb.ModelEnsembling.Step(
                model_name=model.name,
                model_version=ANY_VERSION if model.version is None else model.version,
                input_map=spec.tensors_of(model),
                output_map={one.source or one.name: one.name for one in model.outputs},
            )
            for model in spec.derived_for(0)
        ]
        steps += [
            pb.ModelEnsembling.Step(
                model_name=member.name,
                model_version=ANY_VERSION if member.version is None else member.version,
                input_map=spec.tensors_of(member),
                output_map={member.output: f"{member.name}_scores"},
            )
            for member in spec.members
        ]
        last = pb.ModelEnsembling.Step(
            model_name=averaging_name(spec.name),
            model_version=AVERAGING_VERSION,
            input_map={scores_name(i): f"{member.name}_scores" for i, member in enumerate(spec.members)},
            output_map={name: name for name in ANSWER_COLUMNS},
        )
        return pb.ModelConfig(
            name=spec.name,
            platform=ENSEMBLE,
            max_batch_size=max_batch_size,
            input=[_input(one) for one in spec.inputs],
            output=_outputs(spec),
            ensemble_scheduling=pb.ModelEnsembling(step=[*steps, last]),
        )


def averaging_config(spec: CascadeSpec, *, max_batch_size: int, dtypes: Sequence[str]) -> pb.ModelConfig:
    """The configuration of an ensemble's last step, for outputs of its members of these dtypes, in plan order."""
    dims = (spec.classes,)
    inputs = [TensorSpec(name=scores_name(i), dtype=dtype, dims=dims) for i, dtype in enumerate(dtypes)]
    config = pb.ModelConfig(
        name=averaging_name(spec.name),
        backend="onnxruntime",
        max_batch_size=max_batch_size,
        input=[_input(one) for one in inputs],
        output=_outputs(spec),
        # On the CPU everywhere: a few numbers per row are not worth the way to a GPU.
        instance_group=[_instances("cpu")],
        dynamic_batching=pb.ModelDynamicBatching(),
    )
    config.parameters["intra_op_thread_count"].string_value = "1"
    return config


@contextmanager
def _representable(what: str) -> Iterator[None]:
    """Turns protobuf's refusal of a value, such as a number that is too large, into a RepositoryError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise RepositoryError(f"{what} does not fit Triton's configuration ({error})") from error


def _smallest_batch(manifest: Manifest) -> int:
    """The smallest batch that the model takes: an engine refuses batches below its profile, in warm-up too."""
    profile = manifest.engine.get("profile")
    size = profile.get("min") if isinstance(profile, dict) else None
    return size if isinstance(size, int) else 1


def _instances(device: str) -> pb.ModelInstanceGroup:
    kind = pb.ModelInstanceGroup.KIND_GPU if device == "gpu" else pb.ModelInstanceGroup.KIND_CPU
    return pb.ModelInstanceGroup(count=1, kind=kind)


def _input(tensor: TensorSpec | InputSpec, *, is_ragged: bool = False) -> pb.ModelInput:
    # Without ragged batches requests of different lengths would come one by one.
    kind, ragged = triton_type(tensor.dtype), {"allow_ragged_batch": True} if is_ragged else {}
    return pb.ModelInput(name=tensor.name, data_type=kind, dims=tensor.dims, **ragged)


def _outputs(spec: CascadeSpec) -> list[pb.ModelOutput]:
    outputs = [
        pb.ModelOutput(name=name, data_type=triton_type(column.triton_dtype), dims=[column.width(spec.classes)])
        for name, column in ANSWER_COLUMNS.items()
    ]
    if spec.labels is not None:
        outputs[0].label_filename = LABELS
    return outputs


def _plan_parameter(spec: CascadeSpec) -> dict[str, pb.ModelParameter]:
    """The hash of the plan, by which clients of several servers know that all serve the same."""
    digest = hashlib.sha256(json_from_cascade(spec).encode()).hexdigest()
    return {PLAN_SHA256: pb.ModelParameter(string_value=digest)}


def with_plan_of(config: ModelConfig, other: ModelConfig) -> ModelConfig:
    """A configuration with another one's hash of the plan, the one parameter that is no person's setting."""
    found = ModelConfig()
    found.CopyFrom(config)
    found.parameters.pop(PLAN_SHA256, None)
    if PLAN_SHA256 in other.parameters:
        found.parameters[PLAN_SHA256].CopyFrom(other.parameters[PLAN_SHA256])
    return found


def label_text(labels: Sequence[str]) -> str:
    """The content of a label file."""
    return "".join(f"{label}\n" for label in labels)


def tuned_text(text: str, rendered: ModelConfig, *, path: Path) -> str:
    """The next rendering's text of a config, at `path`, that was edited since it was rendered.

    Raises:
        RepositoryError: the text is malformed, or edited in a field that the plan decides.
    """
    edited = config_from_text(text, subject=str(path))
    # The config as it was rendered, if only tunable fields were edited; its first lines then have its own hash.
    before = with_fields(edited, TUNABLE, of=rendered)
    if not is_hash_of(with_plan_of(before, edited), text):
        _require_owned_fields(before, rendered, text=text, path=path)
    wanted = with_plan_of(with_fields(rendered, TUNABLE, of=edited), rendered)
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


def _require_owned_fields(edited: ModelConfig, rendered: ModelConfig, *, text: str, path: Path) -> None:
    """Raises RepositoryError with the lines whose fields the plan decides and which differ from it."""
    wrong = "; ".join(_edit_of(field, edited, rendered, text=text) for field in differences(edited, rendered))
    if wrong:
        fix = "undo them and change the plan instead, or overwrite the config with `force` or by removing it"
        kept = f"{', '.join(sorted(TUNABLE))} are kept as edited"
        raise RepositoryError(str(path), got=f"edits of what the plan decides: {wrong}", fix=f"{fix}; {kept}")


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
