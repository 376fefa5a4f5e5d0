import dataclasses

import pytest
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import np_to_triton_dtype

from orchestrator.errors import RepositoryError
from orchestrator.repository.configs import (
    averaging_config,
    cascade_config,
    ensemble_config,
    member_config,
    triton_type,
)
from orchestrator.spec import Member, RowLength, Stage, TensorSpec
from orchestrator.spec.answer import ANSWER_COLUMNS
from tests.repository.builders import TOKENS, manifest_of, spec_of

SPEC = spec_of(
    Member(name="small", output="logits"), Member(name="large", output="scores", inputs={"pixels": "x"})
)
ONE_STAGE = dataclasses.replace(SPEC, stages=(Stage(members=SPEC.members),))
KIND_CPU, KIND_GPU = pb.ModelInstanceGroup.KIND_CPU, pb.ModelInstanceGroup.KIND_GPU


def test_a_cascade_is_one_python_instance_on_the_cpu_without_a_queue_policy() -> None:
    config = cascade_config(SPEC)
    assert (config.name, config.backend, config.max_batch_size) == ("cascade", "python", 32)
    assert [(group.kind, group.count) for group in config.instance_group] == [(KIND_CPU, 1)]
    # A queue policy makes the batcher of 24.10 stall for half a second now and then.
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy")
    assert not config.response_cache.enable
    assert not config.model_warmup
    assert not config.model_transaction_policy.decoupled


def test_a_cascade_serves_exactly_the_answer_columns() -> None:
    config = cascade_config(SPEC)
    assert {output.name: (output.data_type, list(output.dims)) for output in config.output} == {
        # By numpy's own dtype: the two names of a column's dtype mean the same.
        name: (pb.DataType.Value(f"TYPE_{np_to_triton_dtype(column.numpy_dtype)}"), [column.width(SPEC.classes)])
        for name, column in ANSWER_COLUMNS.items()
    }


def test_labels_hang_on_the_probabilities_and_only_where_there_are_any() -> None:
    assert [output.label_filename for output in cascade_config(SPEC).output] == ["labels.txt", *[""] * 5]
    bare = cascade_config(dataclasses.replace(SPEC, labels=None))
    assert not any(output.label_filename for output in bare.output)


def test_a_member_config_says_what_its_manifest_says() -> None:
    config = member_config(manifest_of("small", "0" * 64))
    assert (config.name, config.backend, config.max_batch_size) == ("small", "onnxruntime", 8)
    assert (config.input[0].name, config.input[0].data_type, list(config.input[0].dims)) == (
        "x",
        pb.TYPE_FP32,
        [4],
    )
    assert (config.output[0].name, list(config.output[0].dims)) == ("logits", [3])
    assert [(group.kind, group.count) for group in config.instance_group] == [(KIND_CPU, 1)]
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert config.HasField("dynamic_batching")
    assert not config.default_model_filename


def test_the_gpu_flavour_differs_in_placement_warmup_and_the_search_for_convolutions_only() -> None:
    cpu, gpu = (member_config(manifest_of("small", "0" * 64), device=device) for device in ("cpu", "gpu"))
    assert [group.kind for group in gpu.instance_group] == [KIND_GPU]
    # The largest batch takes seconds of a large network on a CPU, and gains nothing there.
    assert [warm.batch_size for warm in cpu.model_warmup] == [1]
    assert [warm.batch_size for warm in gpu.model_warmup] == [1, 8]
    assert list(gpu.model_warmup[0].inputs["x"].dims) == [4]
    assert gpu.parameters.pop("cudnn_conv_algo_search").string_value == "1"
    for config in (cpu, gpu):
        assert {key: value.string_value for key, value in config.parameters.items()} == {
            "intra_op_thread_count": "1",
            "output_kind": "logits",
        }
        for field in ("instance_group", "model_warmup"):
            config.ClearField(field)
    assert cpu == gpu


def test_a_member_whose_shape_is_not_fixed_is_not_warmed_up() -> None:
    free = TensorSpec(name="x", dtype="FP32", dims=(3, -1, -1))
    for device in ("cpu", "gpu"):
        assert not member_config(manifest_of("small", "0" * 64, inputs=(free,)), device=device).model_warmup


def test_a_member_of_several_inputs_has_them_all_and_is_warmed_up_where_their_sizes_are_fixed() -> None:
    config = member_config(manifest_of("text", "0" * 64, inputs=TOKENS))
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("input_ids", pb.TYPE_INT64, [-1]), ("attention_mask", pb.TYPE_INT64, [-1])
    ]  # fmt: skip
    assert not config.model_warmup, "nobody knows which lengths it takes"
    length = RowLength(longest=512, pad={one.name: 0 for one in TOKENS}, macs_at=32, macs_coefficients=(0, 1, 0))
    for device, runs in (("cpu", [(1, 32)]), ("gpu", [(1, 32), (8, 512)])):
        config = member_config(manifest_of("text", "0" * 64, inputs=TOKENS, length=length), device=device)
        found = [
            (one.batch_size, [list(part.dims) for part in one.inputs.values()]) for one in config.model_warmup
        ]
        assert found == [(batch, [[size], [size]]) for batch, size in runs]
    fixed = tuple(dataclasses.replace(one, dims=(7,)) for one in TOKENS)
    warmup = member_config(manifest_of("text", "0" * 64, inputs=fixed)).model_warmup
    assert [{name: list(one.dims) for name, one in each.inputs.items()} for each in warmup] == [
        {"input_ids": [7], "attention_mask": [7]}
    ]


def test_a_tensorrt_engine_always_goes_to_the_gpu() -> None:
    config = member_config(manifest_of("engine", "0" * 64, file="1/model.plan"))
    assert config.backend == "tensorrt"
    assert [group.kind for group in config.instance_group] == [KIND_GPU]
    assert list(config.parameters) == ["output_kind"]
    # The GPU flavour is the same, so that --model-config-name=gpu changes nothing.
    assert config == member_config(manifest_of("engine", "0" * 64, file="1/model.plan"), device="gpu")


@pytest.mark.parametrize(
    ("engine", "sizes"),
    [({}, [1, 8]), ({"profile": {"min": 2, "opt": 4, "max": 8}}, [2, 8]), ({"profile": {"min": 8}}, [8])],
)
def test_a_tensorrt_engine_is_warmed_up_at_both_ends_of_its_profile(engine: dict, sizes: list[int]) -> None:
    config = member_config(manifest_of("engine", "0" * 64, file="1/model.plan", engine=engine))
    assert [warm.batch_size for warm in config.model_warmup] == sizes
    assert not config.cc_model_filenames


def test_engine_facts_that_somebody_damaged_are_passed_over() -> None:
    for engine in ({"profile": 5}, {"profile": {"min": "two"}}):
        config = member_config(manifest_of("engine", "0" * 64, file="1/model.plan", engine=engine))
        assert [warm.batch_size for warm in config.model_warmup] == [1, 8]


def test_an_unusual_file_name_is_told_to_the_backend() -> None:
    assert member_config(manifest_of("m", "0" * 64, file="1/net.onnx")).default_model_filename == "net.onnx"


def test_a_model_file_of_another_kind_is_refused_with_a_way_out() -> None:
    with pytest.raises(RepositoryError, match=r"got model file 1/model\.pt, expected .* by hand"):
        member_config(manifest_of("m", "0" * 64, file="1/model.pt"))


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(RepositoryError, match="got FLOAT, expected one of BOOL"):
        triton_type("FLOAT")
    assert triton_type("BYTES") == "TYPE_STRING"
    manifest = manifest_of("m", "0" * 64, inputs=(TensorSpec(name="x", dtype="INT3", dims=(1,)),))
    with pytest.raises(RepositoryError, match="got INT3"):
        member_config(manifest)


def test_an_ensemble_hands_each_member_its_own_input_name_and_all_outputs_to_the_mean() -> None:
    config = ensemble_config(ONE_STAGE, max_batch_size=8)
    assert (config.platform, config.backend, config.max_batch_size) == ("ensemble", "", 8)
    *members, mean = config.ensemble_scheduling.step
    assert [dict(step.input_map) for step in members] == [{"x": "x"}, {"pixels": "x"}]
    assert [dict(step.output_map) for step in members] == [{"logits": "small_scores"}, {"scores": "large_scores"}]
    assert mean.model_name == "cascade_mean"
    assert dict(mean.input_map) == {"scores_0": "small_scores", "scores_1": "large_scores"}
    assert set(mean.output_map) == set(ANSWER_COLUMNS)


def test_the_mean_takes_each_members_own_dtype() -> None:
    config = averaging_config(ONE_STAGE, max_batch_size=8, dtypes=["FP32", "FP16"])
    assert [entry.data_type for entry in config.input] == [pb.TYPE_FP32, pb.TYPE_FP16]
    assert [list(entry.dims) for entry in config.input] == [[3], [3]]
