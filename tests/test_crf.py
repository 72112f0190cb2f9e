"""The dense CRF against sums over all pairs of pixels, and what must not change its answers."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
import rasterio
import rioxarray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

import geoseg
from geoseg import engine
from geoseg.cli import app
from geoseg.cluster import Cluster
from geoseg.crf import DenseCRF, Lattice
from geoseg.engine import Options
from geoseg.errors import OptionsError, OutputError
from geoseg.segmenter import Segmenter
from geoseg.tiling import Tiling, cores
from geoseg.verbs import inspect
from geoseg.verbs.export import export
from geoseg.verbs.segment import ArraySource
from geoseg.window import Window
from tests.conftest import make_scene
from tests.oracles import Looking, Pooling, crf_marginals, model_folder, segmenter
from tests.test_engine import answered, planned, scenes

METRES = rasterio.Affine(1, 0, 354000, 0, -1, 3057000)
DEMO = Path(__file__).parents[1] / "demo" / "banepa.tif"
LOOKING, POOLING = segmenter(Looking()), segmenter(Pooling(reach=2))
SMALL = DenseCRF(position_px=6, tile=40, overlap=16, iterations=3)
crfs = st.builds(
    DenseCRF,
    appearance=st.floats(0, 6),
    position_px=st.floats(2, 60),
    colour=st.floats(4, 60),
    smoothness=st.floats(0, 6),
    smoothness_px=st.floats(0.5, 8),
    iterations=st.integers(0, 6),
)


def crop(row: int, col: int, side: int = 64) -> torch.Tensor:
    """Colours of a piece of the demo scene, ``(3, side, side)``."""
    with rasterio.open(DEMO) as file:
        return torch.from_numpy(file.read((1, 2, 3), window=((row, row + side), (col, col + side))).astype(np.float32))


def unsure(seed: int, shape: tuple[int, int] = (64, 64), classes: int = 6) -> torch.Tensor:
    """Logits with wide blobs, as those of a network, ``(K, H, W)``."""
    coarse = torch.randn((1, classes, 9, 9), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=shape, mode="bicubic")[0] * 2


def marginals(crf: DenseCRF, logits: torch.Tensor, colours: torch.Tensor, known: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Softmax of the sharpened logits."""
    where = torch.ones(logits.shape[1:], dtype=torch.bool) if known is None else torch.from_numpy(known)
    return crf.sharpen(logits, colours, where).double().softmax(0).numpy()


Question = tuple[torch.Tensor, torch.Tensor, NDArray[np.bool_]]


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Logits, colours and known pixels of any small size."""
    height, width, bands, classes = draw(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(2, 7)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    known = rng.random((height, width)) < draw(st.sampled_from([1.0, 1.0, 0.7]))
    colours = rng.integers(0, 256, (bands, height, width)).astype(np.float32)
    return unsure(draw(st.integers(0, 99)), (height, width), classes), torch.from_numpy(colours), known


@pytest.mark.parametrize("crf", [DenseCRF(appearance=0, smoothness=3), DenseCRF(appearance=0, smoothness=5, smoothness_px=6.5)])
def test_without_approximation_marginals_are_those_of_all_pairs(crf: DenseCRF) -> None:
    logits, colours = unsure(1), crop(600, 600)
    expected = crf_marginals(crf, logits.numpy(), colours.numpy(), np.ones((64, 64), bool))
    assert np.abs(marginals(crf, logits, colours) - expected).max() < 1e-3


@pytest.mark.parametrize(("row", "col", "known"), [(600, 600, 1.0), (1200, 300, 0.7), (2200, 900, 1.0)])
def test_the_lattice_is_near_the_sums_over_all_pairs(row: int, col: int, known: float) -> None:
    """The stated tolerance: 0.005 in the mean, 0.04 for 99 of 100 marginals, 0.4 where a colour is almost alone; 98 of 100 classes."""
    logits, colours = unsure(row), crop(row, col)
    where = np.random.default_rng(row).random((64, 64)) < known
    expected = crf_marginals(DenseCRF(), logits.numpy(), colours.numpy(), where)[:, where]
    found = marginals(DenseCRF(), logits, colours, where)[:, where]
    wrong = np.abs(found - expected)
    assert wrong.mean() < 0.005
    assert np.quantile(wrong, 0.99) < 0.04
    assert wrong.max() < 0.4
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.98
    assert np.abs(expected - logits.softmax(0).numpy()[:, where]).mean() > 0.02, "there was something to do"


def test_mean_field_is_exact_given_the_lattice() -> None:
    """With the lattice's own kernel written out as a matrix, 1e-3 holds."""
    crf, logits, colours = DenseCRF(), unsure(2, (24, 24)), crop(600, 600, 24)
    yx = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij"))
    lattice = Lattice(torch.cat([yx / crf.position_px, colours / crf.colour]).flatten(1))
    matrix = torch.cat([lattice(part.contiguous()) for part in torch.eye(576).split(8, 1)], 1).double().numpy()
    expected = crf_marginals(crf, logits.numpy(), colours.numpy(), np.ones((24, 24), bool), matrix)
    assert np.abs(marginals(crf, logits, colours) - expected).max() < 1e-3


@given(st.integers(1, 7), st.integers(1, 300), st.integers(0, 99))
def test_the_lattice_has_the_width_of_its_kernel_and_loses_nothing(d: int, n: int, seed: int) -> None:
    """Points far from each other answer for themselves alone; equal points share; and all weights are positive."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(d, n)).astype(np.float32)
    features = np.concatenate([points, points, points + 1000], axis=1)
    values = np.zeros((3 * n, 1), np.float32)
    values[:n] = 1
    answer = Lattice(torch.from_numpy(features))(torch.from_numpy(values)).numpy()[:, 0]
    np.testing.assert_array_equal(answer[2 * n :], 0)
    np.testing.assert_array_equal(answer[:n], answer[n : 2 * n])
    assert (answer[:n] > 0).all()


@given(questions(), crfs)
def test_without_weights_the_logits_are_untouched(question: Question, crf: DenseCRF) -> None:
    logits, colours, known = question
    none = replace(crf, appearance=0, smoothness=0)
    assert torch.equal(none.sharpen(logits, colours, torch.from_numpy(known)), logits)


@given(questions(), crfs, st.randoms(use_true_random=False))
def test_permuting_the_classes_permutes_the_answer(question: Question, crf: DenseCRF, random: Random) -> None:
    logits, colours, known = question
    order = list(range(len(logits)))
    random.shuffle(order)
    np.testing.assert_allclose(marginals(crf, logits[order], colours, known), marginals(crf, logits, colours, known)[order], atol=1e-5)


@given(questions(), crfs)
def test_unknown_pixels_have_no_influence(question: Question, crf: DenseCRF) -> None:
    logits, colours, known = question
    where = torch.from_numpy(known)
    answer = crf.sharpen(logits, colours, where)
    assert torch.equal(answer[:, ~where], logits[:, ~where])
    other = crf.sharpen(torch.where(where, logits, torch.nan), torch.where(where, colours, torch.nan), where)
    assert torch.equal(other[:, where], answer[:, where])


@given(questions(), crfs)
def test_what_all_agree_on_stays(question: Question, crf: DenseCRF) -> None:
    """The same logits everywhere keep their winner everywhere, whatever the image shows."""
    logits, colours, known = question
    even = logits[:, :1, :1].expand_as(logits).contiguous()
    answer = crf.sharpen(even, colours, torch.from_numpy(known))
    assert (answer.argmax(0) == even[:, 0, 0].argmax()).all()


@settings(max_examples=15)
@given(scenes(), st.sampled_from([LOOKING, POOLING]), st.integers(30, 120), st.integers(30, 120))
def test_answers_do_not_depend_on_blocks(scene: ArraySource, model: Segmenter, one: int, other: int) -> None:
    plan = planned(scene, model, Options(scores=True, crf=SMALL))
    np.testing.assert_array_equal(answered(plan, model, one), answered(plan, model, other))


@settings(max_examples=15)
@given(scenes())
def test_confidence_is_that_of_the_marginals(scene: ArraySource) -> None:
    layers = answered(planned(scene, LOOKING, Options(scores=True, crf=SMALL)), LOOKING).astype(int)
    valid = scene.valid_pixels
    assert (np.abs(layers[1] - layers[2:].max(0))[valid] <= 1).all()
    assert ((layers[0] > 0) == valid).all()


def test_the_windows_blend_to_almost_the_answer_of_the_whole() -> None:
    """In windows of 96 pixels, 48 of them shared, a position kernel of 6 pixels gives what it gives at once."""
    pixels = crop(600, 600, 256).numpy().astype(np.uint8)
    scene = ArraySource(pixels, np.ones((256, 256), bool), Window(0, 0, 256, 256), (256, 256))
    whole, parts = (
        answered(planned(scene, LOOKING, Options(scores=True, crf=replace(SMALL, tile=tile, overlap=48))), LOOKING) for tile in (512, 96)
    )
    wrong = np.abs(whole[2:].astype(int) - parts[2:].astype(int)) / 254
    assert wrong.mean() < 0.005
    assert (whole[0] == parts[0]).mean() > 0.99


@pytest.mark.parametrize(("field", "value"), [("position_px", 0), ("colour", -1), ("smoothness_px", float("nan")), ("appearance", -1)])
def test_what_is_no_kernel_is_refused(field: str, value: float) -> None:
    with pytest.raises(OptionsError, match=f"crf {field} is {value}"):
        DenseCRF(**{field: value})


@pytest.mark.parametrize("pixel_m", [0.6, 1.0, 1.7])
def test_predict_sharpens_on_the_pixels_of_the_network_and_remembers_it(tmp_path: Path, pixel_m: float) -> None:
    pixels = np.random.default_rng(2).integers(1, 256, (3, 130, 110), dtype=np.uint8)
    pixels[:, 40:80, 30:60] = 0
    scene = make_scene(tmp_path / "s.tif", pixels, nodata=0, transform=rasterio.Affine(pixel_m, 0, 354000, 0, -pixel_m, 3057000))
    model, options = model_folder(tmp_path / "tiny"), Options(precision="fp32", scores=True, crf=SMALL)
    layers = []
    for block in (48, 4096):
        run = partial(geoseg.predict, scene, model, out=tmp_path / str(block), vectors=False, quicklook=False)
        assert run(options=options, block=block)["facts"]["options"]["crf"] == asdict(SMALL)
        assert run(options=options)["already_done"]
        with pytest.raises(OutputError, match="results of another run are there"):
            run(options=replace(options, crf=None))
        with rasterio.open(tmp_path / str(block) / "s_scores.tif") as scores:
            layers.append(scores.read())
    np.testing.assert_array_equal(layers[0], layers[1])
    np.testing.assert_array_equal((layers[0] == 255).all(0), (pixels == 0).all(0))


def files(folder: Path) -> dict[str, bytes]:
    """What a run wrote, but its manifest, which says when."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".manifest.json")}


@pytest.mark.cluster
def test_workers_of_a_cluster_sharpen_to_the_same_bytes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).integers(1, 256, (3, 130, 110), dtype=np.uint8)
    scene, model = make_scene(tmp_path / "s.tif", pixels, transform=METRES), model_folder(tmp_path / "tiny")
    run = partial(geoseg.predict, scene, model, device="cpu", block=48, quicklook=False)
    here = run(out=tmp_path / "here", options=Options(precision="fp32", scores=True, crf=SMALL))
    there = run(out=tmp_path / "there", options=Options(precision="fp32", scores=True, crf=SMALL), cluster=Cluster.of("local:2"))
    assert here["blocks"]["total"] == there["blocks"]["total"] == 9
    assert len(files(tmp_path / "here")) >= 3
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_an_onnx_file_is_sharpened_as_its_model_is(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pixels = np.random.default_rng(5).integers(1, 256, (3, 130, 110), dtype=np.uint8)
    scene, model = make_scene(tmp_path / "s.tif", pixels, transform=METRES), model_folder(tmp_path / "tiny")
    export(model, tmp_path / "tiny.onnx")
    classes = {}
    for name, source, crf, block in (
        ("model", model, SMALL, 4096),
        ("onnx", tmp_path / "tiny.onnx", SMALL, 4096),
        ("blocks", tmp_path / "tiny.onnx", SMALL, 48),
        ("plain", tmp_path / "tiny.onnx", None, 4096),
    ):
        options = Options(precision="fp32", crf=crf)
        geoseg.predict(scene, source, out=tmp_path / name, options=options, block=block, vectors=False, quicklook=False)
        with rasterio.open(tmp_path / name / "s_classes.tif") as file:
            classes[name] = file.read(1)
    np.testing.assert_array_equal(classes["blocks"], classes["onnx"])
    assert (classes["model"] == classes["onnx"]).mean() > 0.999
    assert (classes["plain"] != classes["onnx"]).mean() > 0.01


def test_the_plan_says_what_sharpening_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(6).integers(1, 256, (3, 400, 300), dtype=np.uint8)
    scene, model = make_scene(tmp_path / "s.tif", pixels, transform=METRES), model_folder(tmp_path / "tiny")
    monkeypatch.setattr(inspect, "BLOCK", 128)
    monkeypatch.setattr(engine, "ALIGN", 64)
    asked = [inspect.estimate(scene, model, options=Options(crf=crf), device="cpu") for crf in (None, replace(SMALL, tile=96, overlap=32))]
    plain, sharp = asked
    assert (plain["crf_windows"], plain["blocks"], sharp["blocks"]) == (0, 12, 12)
    lattice = Tiling(400, 300, 96, 32)
    windows = [len(list(lattice.tiles(core, 15))) for core in cores(Window(0, 0, 400, 300), 128, 64)]
    assert sharp["crf_windows"] == pytest.approx(sum(windows), abs=12)
    assert 0 < plain["halo"] < 64 < sharp["halo"] < 64 + 96
    assert sharp["tiles"] > plain["tiles"]
    assert sharp["memory_gb"] >= plain["memory_gb"]
    told = CliRunner().invoke(app, ["plan", str(scene), "--model", str(model), "--crf", "--device", "cpu", "--json"])
    assert json.loads(told.output)["crf_windows"] >= 1


def test_the_array_and_the_command_line_sharpen_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(1, 256, (3, 90, 70), dtype=np.uint8)
    scene = make_scene(tmp_path / "s.tif", pixels, transform=rasterio.Affine(1, 0, 354000, 0, -1, 3057000))
    model = model_folder(tmp_path / "tiny")
    told = CliRunner().invoke(
        app, ["predict", str(scene), "--model", str(model), "--out", str(tmp_path), "--precision=fp32", "--crf", "--no-polygons", "--json"]
    )
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["facts"]["options"]["crf"] == asdict(DenseCRF())
    sharp, plain = (
        geoseg.segment(rioxarray.open_rasterio(scene), model, options=Options(precision="fp32", crf=crf), block=40).classes.values
        for crf in (DenseCRF(), None)
    )
    with rasterio.open(tmp_path / "s_classes.tif") as classes:
        np.testing.assert_array_equal(classes.read(1), sharp)
    assert (sharp != plain).any()
