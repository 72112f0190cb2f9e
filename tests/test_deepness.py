"""ONNX files: exported ones do in the QGIS plugin and in `predict` what the model does; foreign ones are understood or refused."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from geoseg.card import Scaling
from geoseg.cli import app
from geoseg.deepness import CARD_KEY, OnnxModel, read
from geoseg.engine import Options
from geoseg.errors import CardError, GeosegError, OptionsError, OutputError, TilingError
from geoseg.models import locate
from geoseg.segmenter import Segmenter
from geoseg.verbs.export import export
from geoseg.verbs.inspect import inspect
from geoseg.verbs.predict import predict
from tests.conftest import make_scene
from tests.oracles import card, model_folder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TILE = 64
METRES = rasterio.Affine(1, 0, 354000, 0, -1, 3057000)
FACTS = {"model_type": "Segmentor", "class_names": {"0": "Field", "1": "Road", "2": "Water"}, "resolution": 100, "tile_size": TILE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny", tile=TILE)


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    facts = export(folder, path)
    assert facts["same"] >= 0.9999
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [each.name for each in path.parent.iterdir()] == ["tiny.onnx"]
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth noise with a hole, 150 x 200 pixels of one metre."""
    pixels = patches(1, 150, 200)[0].transpose(2, 0, 1).copy()
    pixels[:, 40:60, 90:130] = 0
    return make_scene(tmp_path_factory.mktemp("scenes") / "photo.tif", pixels, nodata=0, transform=METRES, colours=("red", "green", "blue"))


def patches(count: int, height: int, width: int) -> np.ndarray:
    """Coarse colours with fine noise, ``(count, height, width, 3)`` uint8, none of them 0."""
    rng = np.random.default_rng(4)
    coarse = np.kron(rng.integers(30, 226, (count, height // 8 + 1, width // 8 + 1, 3)), np.ones((1, 8, 8, 1)))
    return (coarse[:, :height, :width] + rng.integers(-29, 29, (count, height, width, 3))).astype(np.uint8)


def plugin(path: Path, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What Deepness makes of tiles (N, H, W, B) uint8: scores (N, K, H, W), and channel numbers (N, H, W)."""
    session = onnxruntime.InferenceSession(path)
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    (entry,) = session.get_inputs()
    assert entry.shape[2] == entry.shape[3] == facts["tile_size"]
    assert isinstance(entry.shape[0], str), "the plugin lets people choose a batch where the graph names none"
    fed = np.float32(tiles * 1.0 / 255.0)
    fed = (fed - np.float32(facts["standardization_mean"])) / np.float32(facts["standardization_std"])
    (scores,) = session.run(None, {entry.name: np.ascontiguousarray(fed.transpose(0, 3, 1, 2))})
    kept = np.where(scores < facts["seg_thresh"], 0, scores)
    return scores, kept.argmax(1)


def answers(model: Segmenter, tiles: np.ndarray) -> torch.Tensor:
    return model.logits(tiles.transpose(0, 3, 1, 2), np.ones(tiles.shape[:3], bool))


@pytest.mark.parametrize("batch", [1, 3])
def test_the_plugin_gives_the_models_classes(folder: Path, exported: Path, batch: int) -> None:
    tiles = patches(batch, TILE, TILE)
    expected = answers(Segmenter.load(folder, device="cpu", precision="fp32"), tiles)
    scores, classes = plugin(exported, tiles)
    assert (classes == expected.argmax(1).numpy()).mean() >= 0.9999
    np.testing.assert_allclose(scores, expected.softmax(1).numpy(), atol=1e-5)
    assert len(np.unique(classes)) > 1


def test_an_exported_file_says_everything_in_the_plugins_words(folder: Path, exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    facts = {each.key: json.loads(each.value) for each in model.metadata_props}
    its_card = json.loads((folder / "model.json").read_text())
    assert facts == {
        "model_type": "Segmentor",
        "class_names": {"0": "Class 0", "1": "Class 1", "2": "Class 2", "3": "Class 3"},
        "resolution": 100.0,
        "tile_size": 64,
        "tiles_overlap": 25,
        "standardization_mean": [0.0, 0.0, 0.0],
        "standardization_std": [1.0, 1.0, 1.0],
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
        CARD_KEY: its_card,
    }
    assert json.loads(read(exported).card.to_json()) == its_card | {"sha256": hashlib.sha256(exported.read_bytes()).hexdigest()}
    for place in (sys.prefix, str(Path(__file__).parents[1]), str(Path.home())):
        assert place.encode() not in exported.read_bytes()


def test_logits_of_an_exported_file_are_the_models(folder: Path, exported: Path) -> None:
    tiles = patches(3, TILE, TILE)
    model, file = Segmenter.load(folder, device="cpu", precision="fp32"), Segmenter.load(exported, device="cpu")
    expected = answers(model, tiles).log_softmax(1)
    np.testing.assert_allclose(answers(file, tiles).numpy(), expected.numpy(), atol=1e-3)
    np.testing.assert_array_equal(answers(file, tiles)[1:2].numpy(), answers(file, tiles[1:2]).numpy())


def test_predictions_are_the_models_and_do_not_depend_on_blocks(folder: Path, exported: Path, photo: Path, tmp_path: Path) -> None:
    options = Options(precision="fp32", scores=True)
    maps = {}
    for name, model, block in (("folder", folder, None), ("file", exported, None), ("blocks", exported, 47)):
        manifest = predict(photo, model, out=tmp_path / name, options=options, block=block, confidence=True, quicklook=False, vectors=False)
        with rasterio.open(tmp_path / name / "photo_classes.tif") as classes, rasterio.open(tmp_path / name / "photo_scores.tif") as scores:
            maps[name] = (classes.read(1), scores.read().astype(int), classes.colormap(1), scores.descriptions)
        weights = model / "model.safetensors" if model.is_dir() else model
        assert manifest["model"]["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (maps["folder"][0] == maps["file"][0]).mean() >= 0.9999
    assert np.abs(maps["folder"][1] - maps["file"][1]).max() <= 1
    assert maps["folder"][2:] == maps["file"][2:]
    assert set(np.unique(maps["file"][0])) > {0}
    for whole, cut in zip(maps["file"], maps["blocks"], strict=True):
        np.testing.assert_array_equal(whole, cut)


def test_a_run_belongs_to_the_bytes_of_the_file(exported: Path, photo: Path, tmp_path: Path) -> None:
    path, how = tmp_path / "m.onnx", {"out": tmp_path / "out", "quicklook": False, "vectors": False, "device": "cpu"}
    path.write_bytes(exported.read_bytes())
    assert not predict(photo, path, **how)["already_done"]
    assert predict(photo, path, **how)["already_done"]
    model = onnx.load(path)
    model.doc_string = "the same graph, other bytes"
    onnx.save(model, path)
    with pytest.raises(OutputError, match="other model"):
        predict(photo, path, **how)


@settings(max_examples=40)
@given(
    st.floats(0, 1000),
    st.floats(1, 60000),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 1)), min_size=1, max_size=5),
    st.booleans(),
    st.integers(0, 99),
)
def test_graphs_get_pixels_as_the_plugin_gives_them(
    low: float, span: float, spreads: list[tuple[float, float]], folded: bool, seed: int
) -> None:
    mean, std = (tuple(values) for values in zip(*spreads, strict=True))
    scaling = Scaling(dtype="uint16", low=low, high=low + span, percentiles=(2, 98), mean=mean, std=std)
    whole = card(bands=tuple(f"band_{number}" for number in range(len(mean))), scaling=scaling)
    its_mean, its_std = ((0.0,) * len(mean), (1.0,) * len(mean)) if folded else (mean, std)
    scale, shift = (np.array(values) for values in OnnxModel("", b"", whole, None, its_mean, its_std, 0.5).feed)
    pixels = np.random.default_rng(seed).uniform(low, low + span, (50, len(mean)))
    scaled = ((pixels - low) / span - mean) / std
    np.testing.assert_allclose(scaled * scale + shift, (pixels / 255 - its_mean) / its_std, rtol=1e-6, atol=1e-6 * (low + span) / 2.55)


def foreign(
    path: Path,
    facts: dict[str, Any] | None = None,
    *,
    bands: int = 3,
    channels: int = 3,
    side: int | str = TILE,
    last: str = "Softmax",
    change: Callable[[Any], None] = lambda _: None,
) -> tuple[Path, np.ndarray, np.ndarray]:
    """A file as other tools make them, of a network that looks at one pixel at a time; also its matrix (K, B) and bias (K,)."""
    rng = np.random.default_rng(2)
    matrix = rng.normal(0, 3, (channels, bands)).astype(np.float32)
    bias = (rng.normal(0, 0.2, channels) - matrix.sum(1) / 2).astype(np.float32)  # so that no class wins everywhere
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Conv", ["x", "matrix", "bias"], ["logits" if last else "y"])]
    if last:
        nodes.append(helper.make_node(last, ["logits"], ["y"], **({"axis": 1} if last == "Softmax" else {})))
    graph = helper.make_graph(
        nodes,
        "pointwise",
        [helper.make_tensor_value_info("x", float32, [1, bands, side, side])],
        [helper.make_tensor_value_info("y", float32, [1, channels, side, side])],
        [onnx.numpy_helper.from_array(matrix[:, :, None, None], "matrix"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (FACTS if facts is None else facts).items()}
    helper.set_model_props(model, {key: json.dumps(value) if key == "model_type" else value for key, value in texts.items()})
    change(model)
    path.write_bytes(model.SerializeToString())
    return path, matrix, bias


@settings(max_examples=30)
@given(
    st.integers(1, 5),
    st.integers(2, 5),
    st.sampled_from(["Softmax", "Sigmoid", ""]),
    st.booleans(),
    st.tuples(st.integers(1, TILE), st.integers(1, TILE)),
    st.one_of(st.none(), st.tuples(st.floats(0, 1), st.floats(0.1, 2))),
)
def test_foreign_files_are_computed_as_they_say(
    tmp_path_factory: pytest.TempPathFactory,
    bands: int,
    channels: int,
    last: str,
    fixed: bool,
    shape: tuple[int, int],
    spread: tuple[float, float] | None,
) -> None:
    """Of one pixel at a time, so that what a small tile is filled up with cannot matter."""
    facts: dict[str, Any] = FACTS | {"class_names": {str(number): f"Klasse {number} ä" for number in range(channels)}, "tiles_overlap": 50}
    if spread:
        facts |= {"standardization_mean": [spread[0]] * bands, "standardization_std": [spread[1]] * bands}
    path, matrix, bias = foreign(
        tmp_path_factory.mktemp("foreign") / "Mon modèle.onnx",
        facts,
        bands=bands,
        channels=channels,
        side=TILE if fixed else "any",
        last=last,
    )
    model = Segmenter.load(path, device="cpu")
    assert (model.card.name, model.card.tile, model.card.overlap, model.card.resolution_m) == ("mon-mod-le", TILE, TILE // 2, 1.0)
    assert [c.name for c in model.card.legend.classes] == [f"klasse_{number}_a" for number in range(channels)]
    assert model.card.bands == (("red", "green", "blue") if bands == 3 else tuple(f"band_{number + 1}" for number in range(bands)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, bands, *shape), dtype=np.uint8)
    mean, std = spread or (0, 1)
    logits = np.einsum("kb,nbhw->nkhw", matrix, (pixels / 255 - mean) / std) + bias[:, None, None]
    got = model.logits(pixels, np.ones((2, *shape), bool)).numpy()
    if not last:
        np.testing.assert_allclose(got, logits, atol=2e-3, rtol=1e-4)
    elif last == "Softmax":
        np.testing.assert_allclose(np.exp(got), np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)
    else:
        np.testing.assert_allclose(np.exp(got), 1 / (1 + np.exp(-logits)), atol=1e-5)


@pytest.mark.parametrize("names", [{"0": "road"}, {"0": "other", "1": "road"}], ids=["one", "two"])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_the_score_of_a_single_class_is_compared_with_the_threshold(tmp_path: Path, names: dict[str, str], threshold: float | None) -> None:
    facts: dict[str, Any] = FACTS | {"class_names": names} | ({} if threshold is None else {"seg_thresh": threshold})
    path, matrix, bias = foreign(tmp_path / "road.onnx", facts, channels=1, last="Sigmoid")
    model = Segmenter.load(path, device="cpu")
    assert [c.name for c in model.card.legend.classes] == ["background" if len(names) == 1 else "other", "road"]
    tiles = patches(2, TILE, TILE)
    score = 1 / (1 + np.exp(-(np.einsum("kb,nhwb->nkhw", matrix, tiles / 255) + bias[:, None, None])))[:, 0]
    near = np.abs(score - (threshold or 0.5)) < 1e-5
    classes = answers(model, tiles).argmax(1).numpy()
    np.testing.assert_array_equal(classes[~near], (score >= (threshold or 0.5))[~near])
    assert 0 < classes.mean() < 1
    if threshold is None:
        np.testing.assert_allclose(answers(model, tiles).softmax(1)[:, 1].numpy(), score, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    ['{"0": "Field", "1": "Road", "2": "Water"}', "{0: 'Field', 1: 'Road', 2: 'Water'}", '[{"2": "Water", "1": "Road", "0": "Field"}]'],
)
@pytest.mark.parametrize("key", ["class_names", "names"])
def test_class_names_are_read_as_the_plugin_reads_them(tmp_path: Path, key: str, text: str) -> None:
    facts = {name: value for name, value in FACTS.items() if name != "class_names"} | {key: text}
    legend = read(foreign(tmp_path / "m.onnx", facts)[0]).card.legend
    assert [(c.id, c.title, c.name) for c in legend.classes] == [(1, "Field", "field"), (2, "Road", "road"), (3, "Water", "water")]
    assert len({c.colour for c in legend.classes}) == 3


def test_a_foreign_file_predicts_a_scene(tmp_path: Path, photo: Path) -> None:
    """Pointwise networks are untouched by tiling."""
    path, matrix, bias = foreign(tmp_path / "field.onnx")
    assert inspect(photo, path)["fits"].startswith("yes")
    predict(photo, path, out=tmp_path / "out", quicklook=False, vectors=False)
    with rasterio.open(tmp_path / "out" / "photo_classes.tif") as file, rasterio.open(photo) as scene:
        classes, pixels = file.read(1), scene.read()
    logits = np.einsum("kb,bhw->khw", matrix, pixels / 255) + bias[:, None, None]
    sure = (np.diff(np.sort(logits, 0)[-2:], axis=0)[0] > 1e-4) & (pixels != 0).any(0)
    np.testing.assert_array_equal(classes[sure], logits.argmax(0)[sure] + 1)
    np.testing.assert_array_equal(classes == 0, (pixels == 0).all(0))


def _set(key: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        props = {each.key: each.value for each in model.metadata_props} | {key: json.dumps(value)}
        onnx.helper.set_model_props(model, {name: text for name, text in props.items() if text != "null"})

    return change


def _external(model: Any) -> None:
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="../../etc/passwd")


def _external_inside(model: Any) -> None:
    """In a constant, in a branch of a condition."""
    tensor = onnx.helper.make_tensor("far", onnx.TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["z"], value=tensor)], "branch", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["w"], then_branch=branch, else_branch=branch))


def _custom(model: Any) -> None:
    model.graph.node[0].domain = "com.example"


def _custom_inside(model: Any) -> None:
    node = onnx.helper.make_node("Evil", ["x"], ["y"], domain="com.example")
    model.functions.append(onnx.helper.make_function("local", "f", ["x"], ["y"], [node], []))


def _hidden_contribution(model: Any) -> None:
    """An operator of onnxruntime's own, behind a function of the same domain."""
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    model.functions.append(onnx.helper.make_function("com.microsoft", "f", ["x"], ["y"], [node], [onnx.helper.make_opsetid("", 13)]))
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "EPContext"


def _dim(place: str, axis: int, value: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        getattr(model.graph, place)[0].type.tensor_type.shape.dim[axis].dim_value = value

    return change


def _second(place: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        getattr(model.graph, place).append(onnx.helper.make_tensor_value_info("second", 1, [1, 3, TILE, TILE]))

    return change


def _half(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("model_type", None), "model_type = nothing; expected Segmentor"),
        (_set("model_type", "Detector"), "model_type = Detector; expected Segmentor"),
        (_set("class_names", None), "class_names = nothing; expected names by channel"),
        (_set("class_names", "roads"), "class_names = 'roads'"),
        (_set("class_names", {"0": "a", "2": "b", "3": "c"}), r"channels \[0, 2, 3\]; expected 0, 1"),
        (_set("class_names", {"0": "a", "1": "b"}), "gives 3 channels, but its metadata tells of .* 2 classes"),
        (_set("resolution", None), "resolution = nothing; expected a number"),
        (_set("resolution", 0), "resolution = 0 cm"),
        (_set("resolution", 10**400), "resolution = 1000"),
        (_set("resolution", "fine"), "resolution = 'fine'"),
        (_set("tiles_overlap", 100), "tiles_overlap = 100 %"),
        (_set("standardization_std", [1, 1]), "expected 3 numbers, one a band"),
        (_set("standardization_std", [1, 1, 0]), "standardization_std = 0; expected numbers above 0"),
        (_set("geoseg_card", {"mlm:name": "x"}), "geoseg_card is not a model card"),
        (_external, "keeps weights in another file"),
        (_external_inside, "keeps weights in another file"),
        (_custom, "com.example:Conv, which is not ONNX's own"),
        (_custom_inside, "com.example:Evil, which is not ONNX's own"),
        (_hidden_contribution, "com.microsoft:EPContext, which is not ONNX's own"),
        (_second("input"), "takes 2 inputs"),
        (_second("output"), "gives 2 outputs"),
        (_half, "takes another data type than float32"),
        (_dim("input", 0, 4), "takes batches of 4 tiles only"),
        (_dim("input", 1, 0), "takes any number of bands"),
        (_dim("input", 2, 96), "takes tiles of 96 x 64 pixels; expected squares"),
    ],
)
def test_what_is_missing_or_no_segmentation_model_is_refused(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    path, _, _ = foreign(tmp_path / "m.onnx", change=change)
    with pytest.raises(CardError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_size_that_the_file_does_not_take_is_refused(tmp_path: Path, photo: Path) -> None:
    path, _, _ = foreign(tmp_path / "m.onnx")
    with pytest.raises(TilingError, match="takes tiles of 64 pixels only, not of 96; leave --tile away"):
        predict(photo, path, out=tmp_path / "out", options=Options(tile=96, overlap=32))
    assert not (tmp_path / "out").exists()
    path, _, _ = foreign(tmp_path / "n.onnx", {name: value for name, value in FACTS.items() if name != "tile_size"}, side="any")
    with pytest.raises(CardError, match="tiles_size = nothing"):
        read(path)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            {"channels": 1, "last": "", "facts": FACTS | {"class_names": {"0": "road"}}},
            "expected 0 to 1; end its graph with a softmax or sigmoid",
        ),
        (
            {"channels": 1, "last": "Sigmoid", "facts": FACTS | {"class_names": {"0": "road"}, "seg_thresh": 0}},
            "seg_thresh = 0; expected a score",
        ),
        (
            {"change": lambda model: model.graph.node[0].attribute.add(name="strides", type=7, ints=[2, 2])},
            "onnxruntime|expected .* a score a class",
        ),
        ({"change": lambda model: setattr(model.graph.node[0], "op_type", "NoSuchOperator")}, "onnxruntime .* does not take the graph"),
    ],
    ids=["logits", "threshold", "smaller", "unknown"],
)
def test_what_cannot_be_computed_is_refused(tmp_path: Path, build: dict[str, Any], message: str) -> None:
    path, _, _ = foreign(tmp_path / "m.onnx", **build)
    with pytest.raises(CardError, match=message):
        Segmenter.load(path, device="cpu")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(CardError):
        read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="no such folder, and no model of that name"):
        locate(tmp_path / "none.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(CardError, match="no such file"):
        read(tmp_path / "folder.onnx")


@pytest.mark.parametrize("how", [{"precision": "bf16"}, {"compile": True}, {"device": "cuda"}], ids=str)
def test_what_onnxruntime_does_not_do_is_refused(tmp_path: Path, how: dict[str, Any]) -> None:
    if how.get("device") == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("here it does")
    path, _, _ = foreign(tmp_path / "m.onnx")
    with pytest.raises(OptionsError):
        Segmenter.load(path, **({"device": "cpu"} | how))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    path, _, _ = foreign(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptionsError, match=r"install geoseg\[onnx\]"):
        Segmenter.load(path, device="cpu")


def test_a_file_is_not_replaced_unasked(folder: Path, exported: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already; use --force"):
        export(folder, target)
    assert target.read_bytes() == b"mine"
    done = CliRunner().invoke(app, ["models", "export", str(folder), "--onnx", str(target), "--force", "--json"])
    assert json.loads(done.output)["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    assert target.read_bytes() == exported.read_bytes(), "the same model gives the same file"
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]
    shown = CliRunner().invoke(app, ["models", "show", str(target)])
    assert json.loads(shown.output)["sha256"] == json.loads(done.output)["sha256"]


def test_a_file_that_would_answer_otherwise_never_appears(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "geoseg.verbs.export.to_onnx",
        lambda *_, **__: onnx.load_model_from_string(foreign(tmp_path / "o.onnx", channels=4)[0].read_bytes()),
    )
    with pytest.raises(CardError, match="gives the model's class for"):
        export(folder, tmp_path / "m.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["o.onnx"]


@pytest.mark.parametrize(
    ("model", "target", "kind"),
    [
        ("default", "m.pt", OptionsError),
        ("default", "none/m.onnx", OutputError),
        ("no-such-model", "m.onnx", CardError),
        (None, "m.onnx", OptionsError),
    ],
)
def test_exports_that_cannot_be_are_refused(
    exported: Path, tmp_path: Path, model: str | None, target: str, kind: type[GeosegError]
) -> None:
    with pytest.raises(kind):
        export(model or exported, tmp_path / target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_default_model_maps_the_demo_scene_alike(tmp_path: Path) -> None:
    export("default", tmp_path / "m.onnx")
    scene, maps = Path(__file__).parents[1] / "demo" / "banepa.tif", []
    for model in ("default", tmp_path / "m.onnx"):
        predict(scene, model, out=tmp_path / str(len(maps)), options=Options(precision="fp32"), quicklook=False, vectors=False)
        with rasterio.open(tmp_path / str(len(maps)) / "banepa_classes.tif") as file:
            maps.append(file.read(1))
    assert (maps[0] == maps[1]).mean() >= 0.9999
