"""A model on a device: scaling, batches, augmentation, refusals."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geoseg.card import CARD_NAME
from geoseg.errors import CardError, OptionsError
from geoseg.scene import Stretch
from geoseg.segmenter import Segmenter, fastest
from tests.oracles import Looking, Pointwise, card, model_folder, segmenter


class Showing(torch.nn.Module):
    """Answers with what it was given."""

    stride = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def shown(pixels: np.ndarray, valid: np.ndarray, stretch: Stretch | None = None) -> np.ndarray:
    model = Segmenter(card(classes=3), Showing(), device="cpu", precision="fp32")
    return model.logits(pixels, valid, stretch).numpy()


@given(st.sampled_from([np.uint8, np.uint16, np.int16, np.float32, np.float64, ">u2"]), st.integers(0, 99), st.booleans())
def test_scaling_is_the_cards(dtype: object, seed: int, stretched: bool) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 300 if np.dtype(dtype).itemsize > 1 else 256, (2, 3, 5, 7)).astype(dtype)
    valid = rng.random((2, 5, 7)) < 0.8
    stretch = Stretch((10.0, 20.0, 30.0), (200.0, 210.0, 250.0)) if stretched else None
    facts = card().scaling
    low = np.array(stretch.low if stretch else [0.0] * 3)[:, None, None]
    high = np.array(stretch.high if stretch else [255.0] * 3)[:, None, None]
    mean, std = (np.array(values)[:, None, None] for values in (facts.mean, facts.std))
    expected = (np.clip((pixels.astype(np.float64) - low) / (high - low), 0, 1) - mean) / std
    np.testing.assert_allclose(shown(pixels, valid, stretch), np.where(valid[:, None], expected, 0), atol=1e-5)


def test_what_a_file_stores_where_it_has_no_data_cannot_matter() -> None:
    valid = np.ones((1, 8, 8), bool)
    valid[0, 2:5, 3:6] = False
    pixels = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    other = pixels.copy()
    other[:, :, ~valid[0]] = np.nan
    np.testing.assert_array_equal(shown(pixels, valid), shown(other, valid))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64", reason="asks Linux on x86")
def test_bf16_is_chosen_where_the_processor_has_instructions_for_it() -> None:
    flags = set(next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split())
    assert fastest(torch.device("cpu")) == ("bf16" if flags & {"avx512_bf16", "amx_bf16"} else "fp32")
    assert Segmenter(card(), Pointwise(), device="cpu").precision == fastest(torch.device("cpu"))


@pytest.mark.parametrize("tta", ["flips", "d4"])
def test_augmented_answers_are_the_mean_over_the_views(tta: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    valid = np.ones((2, 16, 16), bool)
    plain = segmenter(Looking())
    model = Segmenter(plain.card, plain._network, device="cpu", precision="fp32", tta=tta)
    total = np.zeros((2, 4, 16, 16))
    views = [(k, f) for k in ((0, 2) if tta == "flips" else range(4)) for f in (False, True)]
    for turns, flip in views:
        seen = np.rot90(pixels, turns, (2, 3))
        answer = plain.logits(np.ascontiguousarray(seen[..., ::-1] if flip else seen), valid).numpy()
        total += np.rot90(answer[..., ::-1] if flip else answer, -turns, (2, 3))
    np.testing.assert_allclose(model.logits(pixels, valid).numpy(), total / len(views), atol=1e-5)


def test_augmentation_leaves_pointwise_networks_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 24), dtype=np.uint8)
    valid = np.ones((1, 8, 24), bool)
    plain = segmenter(Pointwise())
    model = Segmenter(plain.card, plain._network, device="cpu", precision="fp32", tta="d4")
    np.testing.assert_allclose(model.logits(pixels, valid).numpy(), plain.logits(pixels, valid).numpy(), atol=1e-5)


@given(st.integers(1, 9), st.integers(1, 4))
def test_every_forward_pass_has_the_same_batch(count: int, batch: int) -> None:
    sizes = []

    class Counting(Looking):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return super().forward(x)

    model = segmenter(Counting())
    model.prepare((8, 8), largest=batch)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    answers = model.logits(pixels, np.ones((count, 8, 8), bool))
    assert answers.shape == (count, 4, 8, 8)
    assert set(sizes) == {batch}


def test_out_of_memory_on_a_single_tile_is_not_hidden() -> None:
    class Never(Looking):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("fake: out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        segmenter(Never()).logits(np.zeros((1, 3, 8, 8), np.uint8), np.ones((1, 8, 8), bool))


def test_a_model_folder_is_loaded_and_checked(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    model = Segmenter.load(folder, device="cpu")
    assert model.logits(np.zeros((1, 3, 64, 64), np.uint8), np.ones((1, 64, 64), bool)).shape == (1, 4, 64, 64)
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(CardError, match="sha256"):
        Segmenter.load(folder)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    described = json.loads((folder / CARD_NAME).read_text())
    described["options"] = {"encoder_name": "resnet18", "encoder_depth": 4, "decoder_channels": [32, 16, 8, 8]}
    (folder / CARD_NAME).write_text(json.dumps(described))
    with pytest.raises(CardError, match="not the weights of unet"):
        Segmenter.load(folder)


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"device": "cuda:99"}, "is not there"), ({"precision": "int4"}, "choose one of"), ({"tta": "all"}, "choose one of")],
)
def test_unknown_options_are_refused(facts: dict[str, str], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        Segmenter(card(), Pointwise(), **({"device": "cpu"} | facts))
