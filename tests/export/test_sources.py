"""Which weights a source means, and what is said when they cannot be had."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from export.sources import ExportOptions, identify, member_name
from export.sources.torch_networks import identify_timm, identify_torchvision, processing_from_timm
from orchestrator.errors import CommitteeError, ExportError
from tests.export.small_models import save_convnext, save_vit
from tests.onnx_models import model_of


@pytest.fixture(scope="module")
def convnext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_convnext(tmp_path_factory.mktemp("hf") / "Conv-Next.v1")


@pytest.fixture
def folder(convnext: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return shutil.copytree(convnext, tmp_path / "m")


def change(file: Path, **changes: object) -> None:
    """Changes a JSON file; None takes a key out."""
    settings = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def refused(text: str, asked: ExportOptions | None = None) -> str:
    """The one line that comes instead of a model."""
    with pytest.raises(CommitteeError) as caught:
        identify(text, asked or ExportOptions()).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_read_with_labels_processing_and_hashes(convnext: Path) -> None:
    found = identify(f"hf:{convnext}", ExportOptions())
    assert found.name == "conv_next_v1"
    assert set(found.files) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert found.image_px() == (54, 54)
    loaded = found.load()
    assert loaded.labels == tuple(f"thing {i}" for i in range(7))
    assert loaded.dims == (3, 48, 48)
    assert loaded.processing.crop_px == (48, 48)
    assert loaded.network(torch.zeros(2, 3, 48, 48)).shape == (2, 7)


def test_another_resolution_changes_what_the_network_sees_also_of_a_transformer(tmp_path: Path) -> None:
    vit = save_vit(tmp_path / "vit")
    loaded = identify(f"hf:{vit}", ExportOptions(resolution_px=48)).load()
    assert loaded.dims == (3, 48, 48)
    assert loaded.network(torch.zeros(2, 3, 48, 48)).shape == (2, 7)


def test_labels_that_transformers_made_up_are_none(tmp_path: Path) -> None:
    assert identify(f"hf:{save_convnext(tmp_path / 'm', labels=False)}", ExportOptions()).load().labels is None


def test_labels_of_which_two_are_alike_are_kept_as_published(folder: Path) -> None:
    names = json.loads((folder / "config.json").read_text())["id2label"]
    change(folder / "config.json", id2label={**names, "5": "thing 2"})
    assert identify(f"hf:{folder}", ExportOptions()).load().labels[5] == "thing 2"


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "no config.json"),
        ("preprocessor_config.json", "no preprocessor_config.json, expected the model's image processing"),
        ("model.safetensors", "no weights, only config.json, preprocessor_config.json"),
    ],
)
def test_a_folder_that_lacks_a_file_says_which(folder: Path, missing: str, says: str) -> None:
    (folder / missing).unlink()
    assert says in refused(f"hf:{folder}")


def test_by_hand_processing_makes_up_for_a_missing_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    asked = ExportOptions(mean=(0.5,) * 3, std=(0.2,) * 3, resolution_px=40)
    assert identify(f"hf:{folder}", asked).load().dims == (3, 40, 40)
    assert "`mean`, `std` and `resolution_px`" in refused(f"hf:{folder}", ExportOptions(mean=(0.5,) * 3))


def test_damaged_files_of_a_folder_are_one_line_each(folder: Path) -> None:
    weights = folder / "model.safetensors"
    for left in (weights.read_bytes()[:-100], b""):
        weights.write_bytes(left)
        assert "weights that do not load" in refused(f"hf:{folder}")
    (folder / "config.json").write_text("{")
    assert "config.json: got a file that cannot be read" in refused(f"hf:{folder}")


def test_a_model_without_its_head_is_not_filled_with_random_numbers(convnext: Path, folder: Path) -> None:
    import transformers

    transformers.ConvNextForImageClassification.from_pretrained(folder).convnext.save_pretrained(folder)
    shutil.copy(convnext / "config.json", folder)
    assert "weights without classifier" in refused(f"hf:{folder}")


def test_a_model_that_brings_code_or_is_no_classifier_is_refused(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModel": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('code of the folder was run')")
    assert "brings its own code" in refused(f"hf:{folder}")
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    assert "got model type whisper, expected a classifier of images or text" in refused(f"hf:{folder}")
    (folder / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    assert "config.json" in refused(f"hf:{folder}")


@pytest.mark.parametrize("random_weights", [False, True])
@pytest.mark.parametrize("task", ["multi_label_classification", "regression"])
def test_a_checkpoint_whose_classes_do_not_exclude_each_other_is_refused_with_the_reason(
    folder: Path, task: str, random_weights: bool
) -> None:
    asked = ExportOptions(random_weights=random_weights)
    change(folder / "config.json", problem_type=task)
    text = refused(f"hf:{folder}", asked)
    assert f"got problem_type {task}" in text
    assert "classes must exclude each other" in text
    change(folder / "config.json", problem_type="single_label_classification")
    assert identify(f"hf:{folder}", asked).load().labels is not None


def test_a_checkpoint_of_one_class_is_refused_with_what_to_do(tmp_path: Path) -> None:
    text = refused(f"hf:{save_convnext(tmp_path / 'm', classes=1, labels=False)}")
    assert "got 1 class, a regression or a yes-or-no score" in text
    assert "give a yes-or-no score x two columns" in text


def test_a_pickle_that_runs_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "was_run"

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (mark,))

    torch.save({"convnext.embeddings": Evil()}, folder / "pytorch_model.bin")
    assert "weights that do not load" in refused(f"hf:{folder}")
    assert not mark.exists()


def test_without_a_network_a_hub_id_says_which_files_to_bring_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    # A closed port of this machine: the real hub code runs, and is refused.
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    text = refused("hf:somebody/some-model")
    assert "config.json, model.safetensors, and preprocessor_config.json of images" in text
    assert "hf download somebody/some-model" in text
    assert "use hf:FOLDER" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hff:x", "did you mean hf?"),
        ("magic:x", "known are hf"),
        ("hf:", "nothing after the colon"),
        ("hf:/no/such/folder", "no such folder"),
        ("onnx:/no/such/file.onnx", "no such file"),
        ("torch:only_a_module", "torch:<module>:<callable>"),
        ("torch:no_such_module_here:f", "a module that does not import (ModuleNotFoundError"),
        ("torch:tests.export.nets:smal", "did you mean small"),
        ("torch:tests.export.nets:small", "`dims`"),
    ],
)
def test_a_wrong_source_is_one_line_that_says_what_to_do(text: str, says: str) -> None:
    assert says in refused(text)


def test_a_callable_is_called_and_filled_without_running_code(tmp_path: Path) -> None:
    from tests.export import nets

    state, file, net = nets.small().state_dict(), tmp_path / "w.pt", "torch:tests.export.nets:"
    torch.save(state, file)
    asked = ExportOptions(dims=(3, 8, 8), weights=file)
    loaded = identify(f"{net}small", asked).load()
    assert loaded.processing is None
    torch.testing.assert_close(loaded.network.state_dict()["2.weight"], state["2.weight"])
    file.write_bytes(b"no weights")
    assert "weights that do not load" in refused(f"{net}small", asked)
    file.unlink()
    assert "no such file" in refused(f"{net}small", asked)
    asked = ExportOptions(dims=(3, 8, 8))
    assert "expected a torch.nn.Module" in refused(f"{net}no_module", asked)
    assert "a call without arguments" in refused(f"{net}needs_more", asked)


def linear(path: Path, *, op: str = "Gemm") -> Path:
    """A linear classifier as an ONNX file."""
    nodes = [helper.make_node(op, ["x", "w"], ["y"])]
    weights = {"w": np.ones((6, 4), np.float32)}
    onnx.save(model_of(nodes, {"x": ["n", 6]}, {"y": ["n", 4]}, weights), path)
    return path


def test_an_onnx_file_is_taken_under_the_names_that_all_members_share(tmp_path: Path) -> None:
    loaded = identify(f"onnx:{linear(tmp_path / 'Net 1.onnx')}", ExportOptions()).load()
    assert [value.name for value in loaded.proto.graph.input] == ["image"]
    assert [value.name for value in loaded.proto.graph.output] == ["logits"]
    assert loaded.dims == (6,)
    np.testing.assert_allclose(loaded.reference(np.ones((2, 6), np.float32)), 6)
    assert member_name("onnx:/a/Net 1.onnx") == "net_1"
    for name in ("Gr\u00f6\u00dfe", "Gro\u0308\u00dfe"):
        assert member_name(f"onnx:kleine {name}.onnx") == "kleine_gro_e"


def test_an_onnx_file_of_an_unknown_operator_is_refused(tmp_path: Path) -> None:
    assert "not whole" in refused(f"onnx:{linear(tmp_path / 'm.onnx', op='NoSuchOperator')}")


@pytest.mark.parametrize("cut", [0, 20, -30])
def test_a_truncated_onnx_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = linear(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:cut])
    refused(f"onnx:{path}")


def rewrite(path: Path, key: str, value: str) -> None:
    """Says something else of where a model's weights lie."""
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = value if entry.key == key else entry.value
    path.write_bytes(model.SerializeToString())


def test_weights_outside_the_models_folder_or_at_a_negative_offset_are_never_read(tmp_path: Path) -> None:
    inside = tmp_path / "m"
    inside.mkdir()
    path = linear(inside / "m.onnx")
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="w.data", size_threshold=0)
    assert identify(f"onnx:{path}", ExportOptions()).load().dims == (6,)
    rewrite(path, "offset", "-8")
    refused(f"onnx:{path}")
    rewrite(path, "offset", "0")
    (inside / "w.data").rename(tmp_path / "w.data")
    assert "no file w.data" in refused(f"onnx:{path}")
    rewrite(path, "location", "../w.data")
    assert "outside its folder" in refused(f"onnx:{path}")


def test_a_processor_file_without_its_class_means_the_models_usual_one(convnext: Path, folder: Path) -> None:
    change(folder / "preprocessor_config.json", image_processor_type=None)
    loaded = identify(f"hf:{folder}", ExportOptions()).load()
    assert loaded.own_processor_name == "transformers ConvNextImageProcessorPil"
    assert loaded.processing == identify(f"hf:{convnext}", ExportOptions()).load().processing


def test_a_processor_file_of_years_ago_is_read(convnext: Path, folder: Path) -> None:
    change(
        folder / "preprocessor_config.json",
        image_processor_type=None,
        feature_extractor_type="ConvNextFeatureExtractor",
        size=48,
    )
    found = identify(f"hf:{folder}", ExportOptions())
    assert found.image_px() == (54, 54)
    assert found.load().processing == identify(f"hf:{convnext}", ExportOptions()).load().processing


def test_timm_without_timm_and_torchvision_without_torchvision_say_what_to_install() -> None:
    for kind in ("timm", "torchvision"):
        try:
            __import__(kind)
        except (ImportError, RuntimeError):
            assert f"pip install {kind}" in refused(f"{kind}:resnet50")


def fake_timm() -> SimpleNamespace:
    """The part of timm that is used, around a network of ours."""
    from tests.export import nets

    config = {"input_size": (3, 8, 8), "crop_pct": 0.8, "interpolation": "bicubic"}
    config |= {"mean": (0.5,) * 3, "std": (0.2,) * 3}

    def create_model(name: str, *, pretrained: bool) -> torch.nn.Module:
        if pretrained:
            raise OSError("no network")
        network = nets.small()
        network.pretrained_cfg = config
        return network

    data = SimpleNamespace(
        resolve_data_config=lambda _, pretrained_cfg: pretrained_cfg,
        create_transform=lambda **_: lambda image: torch.from_numpy(np.asarray(image)),
    )
    return SimpleNamespace(
        __version__="0", is_model=lambda name: name == "small_net", list_models=lambda: ["small_net"],
        create_model=create_model, data=data,
    )  # fmt: skip


def test_timm_models_bring_their_crop_share() -> None:
    found = identify_timm("small_net", ExportOptions(random_weights=True), timm=fake_timm())
    loaded = found.load()
    assert (loaded.processing.shortest_px, loaded.processing.crop_px) == (10, (8, 8))
    assert processing_from_timm({"input_size": (3, 8, 8), "mean": (0,) * 3, "std": (1,) * 3}).shortest_px == 9
    with pytest.raises(ExportError, match="did you mean small_net"):
        identify_timm("small_nett", ExportOptions(), timm=fake_timm())
    with pytest.raises(ExportError, match="hf download timm/small_net"):
        identify_timm("small_net", ExportOptions(), timm=fake_timm()).load()


def test_a_torchvision_model_brings_its_preset() -> None:
    try:
        __import__("torchvision.models")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no torchvision that fits this torch: {error}")
    loaded = identify_torchvision("resnet18", ExportOptions(random_weights=True)).load()
    assert loaded.processing.crop_px == (224, 224)
