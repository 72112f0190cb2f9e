"""What holds for every architecture, and what its paper or another implementation says of some."""

from __future__ import annotations

import itertools
import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet101, vgg16, vgg16_bn
from torchvision.models.segmentation import fcn_resnet50
from torchvision.models.vgg import cfgs, make_layers

from geoseg import predict
from geoseg.engine import Options
from geoseg.errors import CardError
from geoseg.networks import Architecture, build, find, maskrcnn, names, vgg
from geoseg.networks.fold import fold_batch_norms
from geoseg.networks.mirror import mirrored
from geoseg.networks.reach import KNOWN, reach
from geoseg.networks.registry import ARCHITECTURES
from geoseg.networks.upsample import BilinearUpsampling
from geoseg.segmenter import Segmenter
from geoseg.verbs.networks import described
from geoseg.verbs.networks import networks as listed
from tests.conftest import make_scene
from tests.oracles import Looking, Pooling, decided, margin, model_folder, whole_scene_logits
from tests.test_cli import METRES, geoseg

BANDS, CLASSES = 4, 5

SMALL: dict[str, dict[str, Any]] = {
    "deeplabv1": {"width": 1 / 32},
    "deeplabv2": {"width": 1 / 32},
    "deeplabv3_resnet101": {"width": 1 / 16},
    "deeplabv3_resnet50": {"width": 1 / 16},
    "dilated": {"width": 1 / 32},
    "dpt": {
        "encoder_name": "tu-vit_tiny_patch16_224",
        "decoder_intermediate_channels": [16, 16, 16, 16],
        "decoder_fusion_channels": 16,
    },
    "fcn16s": {"width": 1 / 32},
    "fcn32s": {"width": 1 / 32},
    "fcn8s": {"width": 1 / 32},
    "fcn_resnet101": {"width": 1 / 16},
    "fcn_resnet50": {"width": 1 / 16},
    "fcn_resnet50_skip": {"width": 1 / 16},
    "gcn": {"width": 1 / 16},
    "refinenet": {"width": 1 / 16},
    "segformer": {"encoder_name": "mit_b0", "decoder_segmentation_channels": 32},
    "segnet": {"width": 1 / 32},
    "unet": {"encoder_name": "tu-resnet10t", "decoder_channels": [32, 16, 16, 8, 8]},
    "unet_original": {"width": 1 / 16},
}
"""Options that make a network small. Those of the library that are not named have an encoder ``resnet18``."""

WIDTH_ONLY = [name for name, options in SMALL.items() if set(options) == {"width"}]
"""Networks whose small version looks as far as the large one."""

STRIDES = {
    **dict.fromkeys(["deeplabv1", "deeplabv2", "deeplabv3", "deeplabv3_resnet101", "deeplabv3_resnet50", "dilated"], 8),
    **dict.fromkeys(["fcn_resnet101", "fcn_resnet50", "pspnet"], 8),
    **dict.fromkeys(["deeplabv3plus", "dpt", "pan", "unet_original"], 16),
}
"""Those that are not 32."""

UNUSED = {"dpt": ("encoder.model.norm.", "encoder.model.head."), "pspnet": ("encoder.layer3.", "encoder.layer4.")}
"""Parameters of encoders of the library that the networks there leave aside."""

_VGG16_CONVOLUTIONS = 14_714_688  # Simonyan and Zisserman 2015, table 1 and 2: 138 357 544 less the three fully connected layers
_VGG16_DENSE = 102_764_544 + 16_781_312

COUNTS: dict[str, tuple[dict[str, Any], int, str]] = {
    # 134 million without upsampling (Long et al. 2015, table 1); with upsampling, layer by layer, as in the authors' voc-fcn*/net.py
    "fcn32s": ({}, _VGG16_CONVOLUTIONS + _VGG16_DENSE + 4097 * 21 + 21**2 * 64**2, "shelhamer/fcn.berkeleyvision.org"),
    "fcn16s": ({}, 136_152_917 - 21**2 * 64**2 + 513 * 21 + 21**2 * (4**2 + 32**2), "shelhamer/fcn.berkeleyvision.org"),
    "fcn8s": ({}, 134_346_581 + (513 + 257) * 21 + 21**2 * (4**2 + 4**2 + 16**2), "shelhamer/fcn.berkeleyvision.org"),
    "segnet": ({}, 29_455_125, "alexgkendall/SegNet-Tutorial, segnet_train.prototxt: 2 x 13 convolutions with biases, 25 norms"),
    "unet_original": ({"bands": 1, "classes": 2}, 31_030_658, "Ronneberger et al. 2015, figure 1: 23 convolutions (section 2)"),
    "dilated": ({"context": "none"}, 134_346_581, "fyu/dilation, dilation8_pascal_voc_deploy.prototxt up to fc-final"),
    "deeplabv1": ({}, 20_505_429, "Chen et al. 2015, table 2: 20.5 M"),
    "deeplabv2": ({"trunk": "vgg16"}, _VGG16_CONVOLUTIONS + 4 * (20_505_429 - _VGG16_CONVOLUTIONS), "Chen et al. 2018, figure 7 (b)"),
    **{
        name: ({"auxiliary": True}, count, "torchvision, meta['num_params'] of the weights COCO_WITH_VOC_LABELS_V1")
        for name, count in (
            ("fcn_resnet50", 35_322_218),
            ("fcn_resnet101", 54_314_346),
            ("deeplabv3_resnet50", 42_004_074),
            ("deeplabv3_resnet101", 60_996_202),
        )
    },
    "fcn_resnet50_skip": ({}, 25_557_032 - 2_049_000 + 21 * (512 + 1024 + 2048 + 3), "torchvision's resnet50 without fc, and the scores"),
    "refinenet": ({"pooling_blocks": 4}, 118_052_437, "DrSleep/refinenet-pytorch, rf101; 118 M in Nekrasov et al. 2018, table 1"),
    "gcn": ({}, 60_723_364, "torchvision's resnet152 without fc, and Peng et al. 2017, figure 2, layer by layer (test_networks_resnet.py)"),
}
"""Options, number of parameters with 3 bands and 21 classes unless the options say otherwise, and where the number is from."""


def small(name: str) -> dict[str, Any]:
    """Options of the small version."""
    return SMALL.get(name, {"encoder_name": "resnet18"} if find(name).kind == "smp" else {})


@cache
def network(name: str) -> nn.Module:
    """A small version, which no test may change."""
    torch.manual_seed(0)
    made = build(name, BANDS, CLASSES, **small(name)).eval()
    return lively(made)


def lively(made: nn.Module) -> nn.Module:
    """The network with no layer of zeros, as training leaves none."""
    draw = torch.Generator().manual_seed(1)
    for key, parameter in made.named_parameters():
        if key.endswith("weight") and not parameter.any():
            nn.init.normal_(parameter, std=0.05, generator=draw)
    return made


def alike(found: Tensor, expected: Tensor, share: float = 1e-4) -> bool:
    """Whether two answers of one shape differ by no more than rounding, as a share of the largest."""
    return found.shape == expected.shape and float((found - expected).abs().max() / expected.abs().max()) <= share


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# What holds for every one


@pytest.mark.parametrize("name", names())
def test_any_size_and_each_item_of_a_batch_by_itself(name: str) -> None:
    @settings(max_examples=1)
    @example(height=32, width=33)
    @example(height=97, width=64)
    @given(height=st.integers(32, 97), width=st.integers(32, 97))
    def holds(height: int, width: int) -> None:
        pixels = noise(2, BANDS, height, width)
        with torch.inference_mode():
            both, alone = network(name)(pixels), network(name)(pixels[1:])
        assert both.shape == (2, CLASSES, height, width)
        assert both.dtype == torch.float32
        assert alike(alone, both[1:])

    holds()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deeplabv2", {"trunk": "vgg16"}),
        ("deeplabv2", {"trunk": "vgg16", "multiscale": True}),
        ("dilated", {"padding": "same", "context": "basic"}),
        ("dilated", {"context": "none"}),
        ("unet_original", {"padding": "same"}),
    ],
)
def test_other_options_take_any_size_too_and_any_number_of_bands(name: str, options: dict[str, Any]) -> None:
    made = build(name, 1, 2, **small(name), **options).eval()
    with torch.inference_mode():
        assert all(made(noise(1, 1, *size)).shape == (1, 2, *size) for size in ((32, 33), (47, 64), (97, 95)))


@pytest.mark.parametrize("name", names())
def test_the_answer_is_float32_under_autocast_and_the_same_again(name: str) -> None:
    pixels = noise(1, BANDS, 64, 96)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        first, second = network(name)(pixels), network(name)(pixels)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    assert network(name).stride == STRIDES.get(name, 32)


@pytest.mark.parametrize("name", names())
def test_gradients_reach_every_parameter_and_a_seed_makes_the_same_network(name: str) -> None:
    torch.manual_seed(0)
    trained = lively(build(name, BANDS, CLASSES, **small(name))).train()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(trained.parameters(), network(name).parameters(), strict=True))
    trained(noise(2, BANDS, 64, 64)).square().mean().backward()
    learning = {key: value for key, value in trained.named_parameters() if value.requires_grad}
    forgotten = [key for key, value in learning.items() if value.grad is None or (value.ndim > 1 and not value.grad.any())]
    assert not [key for key in forgotten if not key.startswith(UNUSED.get(name, ()))]


@pytest.mark.parametrize("name", names())
def test_weights_come_back_from_safetensors(name: str, tmp_path: Path) -> None:
    save_file({key: value.contiguous() for key, value in network(name).state_dict().items()}, tmp_path / "weights.safetensors")
    other = build(name, BANDS, CLASSES, **small(name)).eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    pixels = noise(1, BANDS, 64, 64)
    with torch.inference_mode():
        assert torch.equal(other(pixels), network(name)(pixels))


# How far they look


def test_the_reach_of_simple_networks_is_what_it_must_be() -> None:
    assert reach(Looking(reach=3).eval(), 3) == 3
    assert reach(Pooling(reach=3).eval(), 3) == 3 * 4 + 4 + 1  # three cells beyond its own, and the interpolation half a cell farther
    assert reach(LookingFar().eval(), 1) is None


class LookingFar(nn.Module):
    """Looks at everything, by the mean."""

    stride = 1

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels - pixels.mean((2, 3), keepdim=True)


def test_the_reach_of_every_architecture_is_known() -> None:
    assert sorted(KNOWN) == sorted(names() + maskrcnn.names())


@pytest.mark.parametrize("name", ["deeplabv1", "fcn16s", "fcn32s", "fcn8s", "fcn_resnet50_skip", "segnet", "unet_original"])
def test_the_known_reach_is_asked_again(name: str) -> None:
    assert reach(network(name), BANDS) == KNOWN[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_the_known_reach_of_all_networks_is_asked_again(name: str) -> None:
    options = small(name) if name in WIDTH_ONLY else {}
    assert reach(build(name, 3, 2, **options).eval(), 3) == KNOWN[name]


@pytest.mark.parametrize("name", [name for name in WIDTH_ONLY if KNOWN.get(name) is not None])
def test_a_pixel_beyond_the_reach_changes_nothing_and_one_within_does(name: str) -> None:
    far = KNOWN[name]
    strip = noise(1, BANDS, 32, far + 64)

    def answer(pixels: Tensor, turns: int) -> Tensor:
        with torch.inference_mode():
            return torch.rot90(network(name)(torch.rot90(pixels, turns, (2, 3))), -turns, (2, 3))

    for turns, col in enumerate((0, 21, 42, 5)):
        changed = strip.clone()
        changed[..., col] += 100
        before, after = answer(strip, turns), answer(changed, turns)
        assert torch.equal(after[..., col + far + 1 :], before[..., col + far + 1 :])
        assert not torch.equal(after[..., : col + far // 2], before[..., : col + far // 2])


@pytest.mark.parametrize("name", [name for name in names() if KNOWN.get(name, 0) is None or name == "segformer"])
def test_without_a_reach_any_pixel_changes_any_other(name: str) -> None:
    pixels = noise(1, BANDS, 32, 256)
    with torch.inference_mode():
        before = network(name)(pixels)
        pixels[..., :16] += 1000
        assert not torch.equal(network(name)(pixels)[..., -1], before[..., -1])


@pytest.mark.parametrize("name", [name for name in WIDTH_ONLY if KNOWN.get(name) is not None])
def test_an_image_moved_by_the_stride_has_an_answer_moved_by_the_stride(name: str) -> None:
    """Beyond the reach from the borders; this is what the tiling relies on."""
    far, stride = KNOWN[name], network(name).stride
    pixels = noise(1, BANDS, 32, 2 * far + 3 * stride)
    with torch.inference_mode():
        whole, moved = network(name)(pixels), network(name)(pixels[..., stride:])
    assert alike(moved[..., far:-far], whole[..., far + stride : -far])


# How large they are


@pytest.mark.parametrize("name", COUNTS)
def test_the_number_of_parameters_is_that_of_the_paper_or_the_reference(name: str) -> None:
    options, count, source = COUNTS[name]
    with torch.device("meta"):
        made = build(name, **({"bands": 3, "classes": 21} | options))
    assert sum(parameter.numel() for parameter in made.parameters()) == count, source


def test_the_list_says_what_the_networks_are() -> None:
    found = {each["name"]: each for each in listed()}
    assert sorted(found) == sorted(names() + maskrcnn.names())
    assert [each["year"] for each in found.values()] == sorted(each["year"] for each in found.values())
    for name, facts in found.items():
        assert facts["answers"] == ("classes" if name in names() else "instances")
        assert facts["stride"] == (STRIDES.get(name, 32) if name in names() else 64)
        assert 2012 <= facts["year"] <= 2030
        assert facts["reference"].startswith(("arXiv:", "doi:"))
    # Simonyan and Zisserman's convolutions on a picture of 512 x 512, counted by hand: twice the products
    sides, widths = (512, 256, 128, 64, 32), ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
    products = sum(side**2 * 9 * a * b for side, chain in zip(sides, widths, strict=True) for a, b in itertools.pairwise(chain))
    products += 16**2 * (512 * 4096 * 49 + 4096**2 + 4096 * 21) + 16**2 * 21**2 * 64**2
    assert found["fcn32s"]["gflop_per_mpx"] == pytest.approx(2 * products / 512**2 / 1e3, abs=0.1)


@pytest.mark.parametrize("name", names() + maskrcnn.names())
def test_every_option_and_its_default_is_told(name: str) -> None:
    facts, found = described(name), (ARCHITECTURES | maskrcnn.ARCHITECTURES)[name]
    assert facts["about"][0]
    assert facts["kind"] == "smp" or all(words["about"] for words in facts["options"].values()), facts["options"]
    assert facts["options"].keys() == found.options.keys()


def test_networks_on_the_command_line() -> None:
    assert json.loads(geoseg("networks", "list", "--json").stdout) == listed()
    lines = geoseg("networks", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(listed())]] == [each["name"] for each in listed()]
    shown = geoseg("networks", "show", "FCN8s").stdout
    assert all(words in shown for words in ("FCN-8s", "arXiv:1411.4038", "134.5 M parameters", "stride 32, reach 245", "dropout"))
    refused = geoseg("networks", "show", "fcn7s")
    assert refused.returncode == 2
    assert "did you mean" in refused.stderr


# What others say


def test_fcn_is_torchvisions() -> None:
    theirs = fcn_resnet50(weights=None, weights_backbone=None, num_classes=6, aux_loss=True).eval()
    ours = build("fcn_resnet50", 3, 6, auxiliary=True).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(pixels)
        torch.testing.assert_close(ours(pixels), expected["out"])
        logits, auxiliary = ours.forward_with_auxiliary(pixels)
    torch.testing.assert_close(logits, expected["out"])
    torch.testing.assert_close(auxiliary, expected["aux"])
    assert not any(key.startswith("aux") for key in network("fcn_resnet50").state_dict())


class CaffeFCN(nn.Module):
    """FCN-32s, -16s and -8s as the authors' Caffe models compute them: input padded by 100, fc6 not padded, answers cropped by offsets.

    Offsets are those of their prototxt files: 5 and 9 for pool4 and pool3, 19, 27 and 31 for the answers.
    """

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, pixels: Tensor) -> Tensor:
        ours, pools, features = self.ours, [], functional.pad(pixels, [99] * 4)
        for layer in ours.features:
            features = layer(features)
            pools += [features] if isinstance(layer, nn.MaxPool2d) else []
        features = functional.conv2d(features, ours.fc6.weight, ours.fc6.bias).relu()
        scores = ours.score_fr(ours.fc7(features).relu())
        for name, pool, offset in (("4", pools[3], 5), ("3", pools[2], 9)):
            if hasattr(ours, f"score_pool{name}"):
                layer = ours.upscore2 if name == "4" else ours.upscore_pool4
                scores = functional.conv_transpose2d(scores, layer.weight, stride=2)
                height, width = scores.shape[-2:]
                scores = scores + getattr(ours, f"score_pool{name}")(pool)[..., offset : offset + height, offset : offset + width]
        factor, offset = (8, 31) if hasattr(ours, "upscore8") else (16, 27) if hasattr(ours, "upscore16") else (32, 19)
        last = getattr(ours, {8: "upscore8", 16: "upscore16", 32: "upscore"}[factor])
        scores = functional.conv_transpose2d(scores, last.weight, stride=factor)
        return scores[..., offset : offset + pixels.shape[-2], offset : offset + pixels.shape[-1]]


@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
def test_away_from_the_borders_fcn_is_the_caffe_model(name: str) -> None:
    """Their pooling cells begin at pixel -99, ours at 0: so ours sees three more pixels, 99 being 3 more than three cells of 32."""
    far = KNOWN[name]
    pixels = noise(1, BANDS, 2 * far + 40, 2 * far + 56)
    with torch.inference_mode():
        theirs = CaffeFCN(network(name))(pixels)
        ours = network(name)(functional.pad(pixels, (3, 0, 3, 0)))[..., 3:, 3:]
    inside = slice(far + 3, -far - 3)
    assert theirs[..., inside, inside].std() > 1e-3
    torch.testing.assert_close(ours[..., inside, inside], theirs[..., inside, inside], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4, 8, 16, 32])
def test_bilinear_upsampling_is_interpolation_in_the_interior(factor: int) -> None:
    maps = noise(2, 3, 6, 7)
    grown = BilinearUpsampling(3, factor, learned=False)(maps)
    expected = functional.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = slice(factor // 2, -factor // 2)
    assert grown.shape == expected.shape
    torch.testing.assert_close(grown[..., inside, inside], expected[..., inside, inside])


@given(height=st.integers(32, 80), width=st.integers(32, 80), seed=st.integers(0, 9))
@settings(max_examples=5)
def test_segnet_puts_values_back_where_they_were_the_largest(height: int, width: int, seed: int) -> None:
    """Every value that the decoder sees in its first map lies where the encoder's last map has the maximum of its cell."""
    segnet, seen = network("segnet"), {}
    handles = [
        segnet.features[-2].register_forward_hook(lambda _, __, result: seen.update(last=result.detach().clone())),
        segnet.decoder[0].register_forward_pre_hook(lambda _, given: seen.update(first=given[0])),
    ]
    try:
        with torch.inference_mode():
            segnet(noise(1, BANDS, height, width, seed=seed))
    finally:
        for handle in handles:
            handle.remove()
    last, first = seen["last"][0].numpy(), seen["first"][0].numpy()
    expected = np.zeros_like(last)
    for channel, row, col in np.ndindex(len(last), -(-last.shape[1] // 2), -(-last.shape[2] // 2)):
        cell = last[channel, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
        place = np.unravel_index(cell.argmax(), cell.shape)
        expected[channel, 2 * row + place[0], 2 * col + place[1]] = cell.max()
    assert np.array_equal(first, expected)


@given(shape=st.tuples(st.integers(1, 9), st.integers(1, 9)), margin=st.integers(0, 20), below=st.integers(0, 9), right=st.integers(0, 9))
def test_mirrored_is_numpys_reflection(shape: tuple[int, int], margin: int, below: int, right: int) -> None:
    pixels = noise(1, 2, *shape)
    expected = np.pad(pixels.numpy(), [(0, 0), (0, 0), (margin, margin + below), (margin, margin + right)], mode="reflect")
    assert np.array_equal(mirrored(pixels, margin, below, right).numpy(), expected)


def test_unet_sees_mirrored_pixels_as_if_they_were_there() -> None:
    """A picture that goes on as its mirror image gets the same answer as one that shows it."""
    picture = noise(1, BANDS, 64, 68)
    shown = mirrored(picture, 96)
    with torch.inference_mode():
        alone, inside = network("unet_original")(picture), network("unet_original")(shown)[..., 96:-96, 96:-96]
    torch.testing.assert_close(alone, inside, rtol=1e-4, atol=1e-5)


def test_unets_paddings_agree_away_from_the_borders() -> None:
    valid, same = network("unet_original"), build("unet_original", BANDS, CLASSES, padding="same", **small("unet_original")).eval()
    same.load_state_dict(valid.state_dict())
    pixels = noise(1, BANDS, 288, 304)
    with torch.inference_mode():
        whole = same(functional.pad(pixels, (14, 2, 14, 2)))[..., 14:-2, 14:-2]  # so that pooling cells begin where the others do, 2 mod 16
        torch.testing.assert_close(valid(pixels)[..., 112:-112, 112:-112], whole[..., 112:-112, 112:-112], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", ["basic", "large"])
def test_the_context_module_begins_as_the_identity(context: str) -> None:
    torch.manual_seed(0)
    module = build("dilated", 3, 6, width=1 / 32, context=context).eval().context
    scores = noise(1, 6, 40, 44).abs()
    with torch.inference_mode():
        torch.testing.assert_close(
            module(scores), scores, rtol=0.1 if context == "large" else 1e-5, atol=0.3 if context == "large" else 1e-5
        )


def test_deeplab_fuses_the_largest_score_of_three_sizes() -> None:
    one = lively(build("deeplabv2", 3, 4, trunk="vgg16", width=1 / 32)).eval()
    three = build("deeplabv2", 3, 4, trunk="vgg16", width=1 / 32, multiscale=True).eval()
    three.load_state_dict(one.state_dict())
    pixels = noise(1, 3, 65, 97)
    with torch.inference_mode():
        sizes = [(65, 97), (49, 73), (33, 49)]
        each = [one._scores(functional.interpolate(pixels, size, mode="bilinear", align_corners=True)) for size in sizes]
        coarse = torch.stack([functional.interpolate(scores, (9, 13), mode="bilinear", align_corners=True) for scores in each]).amax(0)
        expected = functional.interpolate(coarse, (65, 97), mode="bilinear", align_corners=True)
        torch.testing.assert_close(three(pixels), expected)
    assert not torch.allclose(three(pixels), one(pixels))


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_trunks_take_torchvisions_weights(bands: int) -> None:
    with torch.device("meta"):
        layouts = {"vgg16": vgg16(), "vgg16_bn": vgg16_bn(), "resnet101": resnet101()}
        made = {
            "vgg16": [build(name, bands, 2) for name in ("fcn32s", "fcn16s", "fcn8s", "dilated", "deeplabv1")]
            + [build("deeplabv2", bands, 2, trunk="vgg16")],
            "vgg16_bn": [build("segnet", bands, 2)],
            "resnet101": [build("deeplabv2", bands, 2)],
        }
    for layout, all_made in made.items():
        for each in all_made:
            each.load_trunk(layouts[layout].state_dict())  # on the device that has only shapes
            with pytest.raises(CardError, match=r"weights have no|has shape"):
                each.load_trunk(
                    {key: value for key, value in layouts[layout].state_dict().items() if "28.weight" not in key and "layer4" not in key}
                )


def test_with_torchvisions_weights_an_encoder_computes_what_torchvisions_does() -> None:
    torch.manual_seed(0)
    theirs, ours = make_layers(cfgs["D"], batch_norm=True).eval(), build("segnet", 3, 2).eval()
    ours.load_trunk({f"features.{key}": value for key, value in theirs.state_dict().items()})
    features = pixels = noise(1, 3, 64, 96)
    with torch.inference_mode():
        for layer in ours.features:
            features = layer(features)[0] if isinstance(layer, nn.MaxPool2d) else layer(features)
        assert alike(features, theirs(pixels))


@pytest.mark.parametrize(("name", "side"), [("classifier.0", 7), ("classifier.3", 1)])
def test_fully_connected_layers_become_convolutions_that_compute_the_same(name: str, side: int) -> None:
    dense, convolution = nn.Linear(12 * side**2, 20), nn.Conv2d(12, 20, side)
    vgg.load_dense(convolution, {f"{name}.{key}": value.detach() for key, value in dense.state_dict().items()}, name)
    features = noise(2, 12, side, side)
    with torch.inference_mode():
        assert alike(convolution(features).flatten(1), dense(features.flatten(1)))


# What surrounds them


@pytest.mark.parametrize(
    ("architecture", "options", "words"),
    [
        ("unett", {}, ["unett", "'unet'"]),
        ("unet", {"encoder_nme": "resnet18"}, ["encoder_nme", "'encoder_name'"]),
        ("unet", {"encoder_name": "resnet81"}, ["resnet81", "'resnet18'"]),
        ("unet", {"encoder_name": "tu-resnet10tt"}, ["tu-resnet10tt", "'tu-resnet10t'"]),
        ("unet", {"encoder_name": 18}, ["unknown encoder"]),
        ("unet", {"encoder_weights": "imagenet"}, ["no option 'encoder_weights'"]),
        ("unet", {"encoder_name": "resnet18", "decoder_channels": [8]}, ["cannot be built"]),
        ("fcn_resnet50", {"depth": 3}, ["no option 'depth'", "did you mean 'width'"]),
        ("unet_original", {"padding": "full"}, ["'full' is neither 'valid' nor 'same'"]),
        ("dilated", {"context": "huge"}, ["'basic' or 'large'", "'huge'"]),
        ("deeplabv2", {"trunk": "resnet50"}, ["neither 'resnet101' nor 'vgg16'"]),
    ],
)
def test_odd_facts_are_refused(architecture, options, words):
    with pytest.raises(CardError) as caught:
        build(architecture, 3, 6, **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_names_in_any_case() -> None:
    assert build("FPN", 3, 2, encoder_name="tu-resnet10t").stride == 32
    assert isinstance(find("Unet"), Architecture)


def _batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", names())
def test_folding_changes_no_answer(name: str) -> None:
    original = deepcopy(network(name))
    draw = torch.Generator().manual_seed(2)
    for norm in _batch_norms(original):
        for values, low, high in ((norm.running_mean, -0.2, 0.2), (norm.running_var, 0.5, 2), (norm.weight.data, 0.5, 1.5)):
            values.uniform_(low, high, generator=draw)
    folded = fold_batch_norms(original, BANDS)
    assert folded is not original
    assert folded.stride == original.stride
    assert len(_batch_norms(folded)) < max(len(_batch_norms(original)), 1)
    pixels = noise(1, BANDS, 128, 160, seed=3)
    with torch.inference_mode():
        assert alike(folded(pixels), original(pixels), 1e-3)


class Twice(nn.Module):
    """A network that uses the result of a convolution beside the batch norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.norm.running_mean.fill_(1)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.conv(pixels)
        return features + self.norm(features)


def test_a_network_that_cannot_be_folded_stays_as_it_is() -> None:
    made = Twice().eval()
    assert fold_batch_norms(made, 1) is made
    plain = nn.Conv2d(1, 2, 1).eval()
    assert isinstance(fold_batch_norms(plain, 1), nn.Conv2d)


@pytest.mark.parametrize("name", ["deeplabv1", "dilated", "fcn8s", "segnet", "unet_original"])
def test_predict_makes_the_map_that_the_network_says(name: str, tmp_path: Path) -> None:
    facts = {"architecture": name, "options": small(name), "stride": network(name).stride}
    folder = model_folder(tmp_path / "model", tile=160, overlap=64, **facts)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 97, 130), dtype=np.uint8)
    scene = make_scene(tmp_path / "scene.tif", pixels, transform=METRES)
    predict(scene, folder, out=tmp_path, options=Options(precision="fp32"), device="cpu", vectors=False, quicklook=False)
    model, valid = Segmenter.load(folder, device="cpu", precision="fp32"), np.ones(pixels.shape[1:], bool)
    logits = whole_scene_logits(model, pixels, valid)
    with rasterio.open(tmp_path / "scene_classes.tif") as raster:
        classes = raster.read(1)
    sure = margin(logits) > 1e-4 * np.abs(logits).max()
    assert sure.mean() > 0.5
    assert np.array_equal(classes[sure], decided(model, logits, valid)[sure])
