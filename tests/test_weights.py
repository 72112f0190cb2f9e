"""Pretrained encoders, from files that are made here and from caches of the hubs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet50_Weights, resnet18, resnet34, resnet50, vgg11_bn, vgg16

from geoseg.errors import OptionsError
from geoseg.networks import build, find
from geoseg.networks.stem import adapted
from geoseg.networks.weights import load_encoder

_UNET = {"encoder_depth": 3, "decoder_channels": [16, 16, 16]}


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    """A state of it that is told apart from any other by noise; without the largest layers of a classifier."""
    draw = torch.Generator().manual_seed(1)
    shapes = {key: value.shape for key, value in network.state_dict().items() if value.numel() < 10**7}
    return {key: torch.rand(shape, generator=draw) if shape else torch.tensor(7) for key, shape in shapes.items()}


def _on_meta(made: Callable[[], nn.Module]) -> nn.Module:
    """A network without numbers, for its names and shapes."""
    with torch.device("meta"):
        return made()


def _loaded(source: Path | str, bands: int = 3, name: str = "unet", **options) -> nn.Module:
    network = build(name, bands, 2, **options).eval()
    load_encoder(network, find(name), options, bands, source)
    return network


def _file(path: Path, state: dict) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("encoder", "suffix", "made"),
    [
        ("resnet18", ".pth", resnet18),
        ("vgg11_bn", ".pt", vgg11_bn),
        ("resnet18", ".safetensors", lambda: smp.encoders.get_encoder("resnet18", weights=None)),
        ("tu-resnet10t", ".safetensors", lambda: timm.create_model("resnet10t")),
        ("tu-convnext_atto", ".bin", lambda: timm.create_model("convnext_atto")),
    ],
)
def test_the_encoder_has_every_tensor_of_the_file_that_it_knows(tmp_path: Path, encoder: str, suffix: str, made):
    state = _state(_on_meta(made))
    network = _loaded(_file(tmp_path / f"weights{suffix}", state), encoder_name=encoder, **_UNET)
    own = network.encoder.state_dict()
    given = {key.removeprefix("features."): value for key, value in state.items()}
    for key, value in own.items():
        plain = key.removeprefix("model.").removeprefix("features.").replace("stages_", "stages.").replace("stem_", "stem.")
        assert torch.equal(value, given[plain]), key


@pytest.mark.parametrize("wrapped", [lambda s: {"epoch": 3, "state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}])
def test_checkpoints_are_unwrapped(tmp_path: Path, wrapped):
    state = _state(resnet18())
    network = _loaded(_file(tmp_path / "checkpoint.pth", wrapped(state)), encoder_name="resnet18", **_UNET)
    assert torch.equal(network.encoder.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


def test_a_network_of_ours_gives_its_encoder(tmp_path: Path):
    before = build("fpn", 4, 7, encoder_name="tu-resnet10t")
    after = _loaded(_file(tmp_path / "model.safetensors", before.state_dict()), 4, encoder_name="tu-resnet10t", **_UNET)
    own, expected = after.encoder.state_dict(), before.encoder.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in own.items())


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_torchvisions_resnet_and_its_segmentation_networks_fit(tmp_path: Path, prefix: str):
    state = {key: value.half() for key, value in _state(_on_meta(resnet50)).items()}
    path = _file(tmp_path / "resnet50.pth", {prefix + key: value for key, value in state.items()} | {"classifier.4.weight": torch.zeros(1)})
    network = _loaded(path, 4, "fcn_resnet50_skip")
    torch.testing.assert_close(network.backbone["layer4"][2].conv3.weight, state["layer4.2.conv3.weight"].float())
    torch.testing.assert_close(network.backbone["conv1"].weight[:, :3], state["conv1.weight"].float() * 3 / 4)


@given(before=st.integers(1, 5), bands=st.integers(1, 8), seed=st.integers(0, 99))
def test_a_grey_image_gives_the_same_activations_in_any_number_of_bands(before: int, bands: int, seed: int):
    weight = torch.randn(4, before, 3, 3, generator=torch.Generator().manual_seed(seed))
    made = adapted(weight, bands)
    assert made.shape == (4, bands, 3, 3)
    torch.testing.assert_close(made.sum(1), weight.sum(1), rtol=1e-4, atol=1e-5)
    if bands >= before:
        torch.testing.assert_close(made[:, :before] * bands, weight * before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bands", [1, 2, 4, 6])
@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet10t"])
def test_other_bands_keep_the_activations_of_grey(tmp_path: Path, bands: int, encoder: str):
    torch.manual_seed(0)
    made = resnet18() if encoder == "resnet18" else timm.create_model("resnet10t")
    path = _file(tmp_path / "weights.pth", made.state_dict())
    grey = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    colour = _loaded(path, 3, encoder_name=encoder, **_UNET).encoder
    other = _loaded(path, bands, encoder_name=encoder, **_UNET).encoder
    with torch.inference_mode():
        expected, found = colour(grey.expand(-1, 3, -1, -1)), other(grey.expand(-1, bands, -1, -1))
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def _refused(source: Path | str, *words: str, name: str = "unet", **options) -> None:
    network = build(name, 3, 2, **options)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(OptionsError) as caught:
        load_encoder(network, find(name), options, 3, source)
    assert all(word in str(caught.value) for word in words), caught.value
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_weights_of_another_encoder_are_refused_and_nothing_is_loaded(tmp_path: Path):
    small, large = (_file(tmp_path / f"{number}.pth", made().state_dict()) for number, made in ((18, resnet18), (34, resnet34)))
    _refused(small, "18.pth", "'resnet34' of unet", "80 of 216", "'layer1.2.bn1.bias'", encoder_name="resnet34")
    _refused(large, "34.pth", "'resnet18' of unet", "'layer1.2.bn1.bias'", "larger", encoder_name="resnet18")
    narrow = {key: value[:1] if key == "layer2.0.conv1.weight" else value for key, value in resnet18().state_dict().items()}
    odd = _file(tmp_path / "narrow.pth", narrow)
    _refused(odd, "layer2.0.conv1.weight is (1, 64, 3, 3), expected (128, 64, 3, 3)", encoder_name="resnet18")
    _refused(small, "torchvision/resnet50", "missing", name="gcn", depth=50)


class _Trap:
    """What must not be unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


def test_files_that_hold_something_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    small = {"encoder_name": "tu-resnet10t", **_UNET}
    _refused("nowhere.pth", "no encoder weights here", **small)
    (tmp_path / "text.safetensors").write_text("no")
    _refused("text.safetensors", "not a state dict", **small)
    (tmp_path / "empty.pth").touch()
    _refused("empty.pth", "not a state dict", **small)
    _refused(_file(tmp_path / "list.pth", [torch.zeros(1)]), "holds a list", **small)
    _refused(_file(tmp_path / "numbers.pth", {"epoch": 3}), "expected a state dict", **small)
    _refused(_file(tmp_path / "trap.pth", {"conv1.weight": _Trap()}), "not a state dict", **small)
    assert not (tmp_path / "trapped").exists()


def test_vgg_goes_into_networks_that_make_convolutions_of_it(tmp_path: Path):
    state = {key: torch.tensor(0.25).expand(value.shape) for key, value in _on_meta(vgg16).state_dict().items()}
    path = _file(tmp_path / "vgg16.pth", state)
    network = build("deeplabv1", 4, 2)
    load_encoder(network, find("deeplabv1"), {}, 4, path)
    assert (network.features[2].weight == 0.25).all()
    assert (network.features[0].weight == 0.25 * 3 / 4).all()
    assert (network.head.fc6.weight == 0.25).all()
    with pytest.raises(
        OptionsError, match=r"vgg16.pth: not the weights of the encoder 'torchvision/vgg16_bn' of segnet: the weights have no"
    ):
        load_encoder(build("segnet", 3, 2), find("segnet"), {}, 3, path)
    with pytest.raises(OptionsError, match=r"'unet_original' has no encoder"):
        load_encoder(build("unet_original", 3, 2, width=1 / 16), find("unet_original"), {"width": 1 / 16}, 3, path)


def test_weights_come_from_the_cache_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = {key: torch.tensor(0.25).expand(value.shape) for key, value in _on_meta(resnet50).state_dict().items()}
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    _file(cache / Path(ResNet50_Weights.IMAGENET1K_V1.url).name, state)
    network = _loaded("imagenet", 3, "gcn", depth=50)
    assert (network.backbone["layer4"][0].conv1.weight == 0.25).all()
    _refused("IMAGENET1K_V3", "torchvision", "'IMAGENET1K_V2'", name="gcn", depth=50)


def test_weights_come_from_the_cache_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    _refused("imagenet", "'resnet18' cannot be fetched", "name the file", encoder_name="resnet18")
    _refused("imagenet", "'tu-resnet10t' cannot be fetched", encoder_name="tu-resnet10t")
    _refused("imagenette", "did you mean 'imagenet'", encoder_name="resnet18")
    settings = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    snapshot = tmp_path / f"models--{settings['repo_id'].replace('/', '--')}" / "snapshots" / settings["revision"]
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    state = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    _file(snapshot / "model.safetensors", {key: torch.full(value.shape, 0.25) for key, value in state.items()})
    network = _loaded("imagenet", 3, encoder_name="resnet18", **_UNET)
    assert np.isclose(network.encoder.layer1[0].conv1.weight.mean().item(), 0.25)
