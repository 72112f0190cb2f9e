"""Networks on ResNet trunks: torchvision's, FCN with skips, RefineNet, GCN, PSPNet."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torchvision.models import get_model, resnet50
from torchvision.models.feature_extraction import create_feature_extractor

from geoseg.errors import CardError
from geoseg.networks import build
from geoseg.networks.gcn import BoundaryRefinement, GlobalConvolution
from geoseg.networks.refinenet import ChainedResidualPooling, MultiResolutionFusion, RefineNetBlock, ResidualConvUnit

_TORCHVISION = {  # parameters with 21 classes and the auxiliary head: "num_params" of the weights in torchvision's documentation
    "fcn_resnet50": 35_322_218,
    "fcn_resnet101": 54_314_346,
    "deeplabv3_resnet50": 42_004_074,
    "deeplabv3_resnet101": 60_996_202,
}
# "num_params" of ResNet{50,101,152}_Weights in torchvision's documentation, less those of the last layer (2048 x 1000 and 1000)
_RESNET = {50: 25_557_032 - 2_049_000, 101: 44_549_160 - 2_049_000, 152: 60_192_808 - 2_049_000}


def _parameters(name: str, classes: int, **options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(name, 3, classes, **options).parameters())


def _pixels(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "parameters"), _TORCHVISION.items())
def test_torchvisions_networks_equal_theirs(name: str, parameters: int):
    theirs = get_model(name, weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()
    ours = build(name, 3, 21, auxiliary=True).eval()
    assert sum(p.numel() for p in ours.parameters()) == parameters
    ours.load_state_dict(theirs.state_dict())
    pixels = _pixels(1, 3, 41, 56)
    with torch.inference_mode():
        expected = theirs(pixels)
        assert torch.equal(ours(pixels), expected["out"])
        logits, auxiliary = ours.forward_with_auxiliary(pixels)
    assert torch.equal(logits, expected["out"])
    assert torch.equal(auxiliary, expected["aux"])
    assert ours.stride == 8


def test_without_auxiliary_head_there_is_none_to_train():
    network = build("deeplabv3_resnet50", 3, 2, width=0.1)
    assert not any(key.startswith("aux") for key in network.state_dict())
    with pytest.raises(RuntimeError, match="auxiliary=True"):
        network.forward_with_auxiliary(_pixels(1, 3, 32, 32))
    with pytest.raises(RuntimeError, match="auxiliary=True"):
        build("pspnet", 3, 2, encoder_name="resnet18").forward_with_auxiliary(_pixels(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "dilations", "rates"),
    [  # Chen et al. 2017, section 3.2.1: at output stride 16 the unit rate of block4 is 2; section 3.3: rates double at stride 8
        ({"output_stride": 16, "multi_grid": (1, 2, 4)}, [2, 4, 8], [6, 12, 18]),
        ({"output_stride": 8, "multi_grid": [1, 2, 4]}, [4, 8, 16], [12, 24, 36]),
        ({"output_stride": 16}, [1, 2, 2], [6, 12, 18]),
        ({}, [2, 4, 4], [12, 24, 36]),
    ],
)
def test_dilations_of_deeplabv3(options, dilations, rates):
    network = build("deeplabv3_resnet50", 3, 2, width=0.1, **options).eval()
    assert [block.conv2.dilation[0] for block in network.backbone["layer4"]] == dilations
    assert [layer[0].dilation[0] for layer in network.classifier[0].convs[1:-1]] == rates
    assert network.backbone(_pixels(1, 3, 64, 64))["layer4"].shape[-1] == 64 // network.stride


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("deeplabv3_resnet50", {"output_stride": 32}, "neither 8 nor 16"),
        ("deeplabv3_resnet50", {"multi_grid": (1, 2)}, "needs 3 factors"),
        ("refinenet", {"depth": 34}, "no ResNet-34"),
        ("gcn", {"size": 14}, "even"),
        ("pspnet", {"encoder_output_stride": 4}, "cannot be built"),
    ],
)
def test_odd_options_are_refused(name, options, words):
    with pytest.raises(CardError, match=words):
        build(name, 3, 2, **options)


def test_skips_are_scores_of_three_strides_resized_and_added():
    trunk = resnet50(weights=None).eval()
    network = build("fcn_resnet50_skip", 3, 4).eval()
    network.backbone.load_state_dict({key: value for key, value in trunk.state_dict().items() if not key.startswith("fc.")})
    stages = create_feature_extractor(trunk, ["layer2", "layer3", "layer4"])
    pixels = _pixels(1, 3, 70, 97)
    with torch.inference_mode():
        expected = torch.zeros(1, 4, 70, 97)
        for stride, (stage, features) in zip((8, 16, 32), stages(pixels).items(), strict=True):
            scores = torch.einsum("nchw,kc->nkhw", features, network.score[stage].weight[..., 0, 0])
            scores += network.score[stage].bias[:, None, None]
            expected += functional.interpolate(scores, scale_factor=stride, mode="bilinear")[..., :70, :97]
        torch.testing.assert_close(network(pixels), expected, rtol=1e-4, atol=1e-3)


def test_parameters_of_fcn_with_skips():
    assert _parameters("fcn_resnet50_skip", 21) == _RESNET[50] + 21 * (512 + 1024 + 2048 + 3)


def test_parameters_of_refinenet():
    """Those of Nekrasov's PyTorch models (github.com/DrSleep/refinenet-pytorch, ``rf101``), counted layer by layer.

    Nekrasov et al. 2018, "Light-Weight RefineNet", table 1, gives 99, 118 and 134 millions.
    """

    def units(channels: int, number: int) -> int:
        return number * (2 * 9 * channels * channels + channels)

    def convs(*pairs: tuple[int, int]) -> int:
        return sum(9 * before * after for before, after in pairs)

    reductions = convs((2048, 512), (1024, 256), (512, 256), (256, 256))
    fusions = convs((512, 256), *[(256, 256)] * 5)
    pooling = 4 * convs((512, 512), *[(256, 256)] * 3)
    decoder = reductions + fusions + pooling + units(512, 2 + 3) + units(256, 3 * (2 + 3)) + convs((256, 21)) + 21
    for depth, millions in ((50, 99), (101, 118), (152, 134)):
        parameters = _parameters("refinenet", 21, depth=depth, pooling_blocks=4)
        assert parameters == _RESNET[depth] + decoder
        assert round(parameters / 1e6) == millions
    assert _parameters("refinenet", 21) == _RESNET[101] + decoder - pooling // 2


def test_parameters_of_gcn():
    """Those of figure 2 with the paper's ResNet-152, k = 15 and 21 classes, counted layer by layer."""
    kernels = sum(2 * 15 * (channels * 21 + 21 * 21) + 4 * 21 for channels in (256, 512, 1024, 2048))
    refinements = 9 * 2 * (9 * 21 * 21 + 21)
    deconvolutions = 5 * 16 * 21 * 21
    assert _parameters("gcn", 21) == _RESNET[152] + kernels + refinements + deconvolutions


def _identity(conv: nn.Conv2d) -> None:
    nn.init.dirac_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


@settings(max_examples=20)
@given(blocks=st.integers(1, 4), size=st.integers(1, 12))
def test_chained_pooling_sees_ever_larger_squares(blocks: int, size: int):
    pooling = ChainedResidualPooling(3, blocks)
    for conv in pooling.convs:
        _identity(conv)
    features = _pixels(1, 3, size, size + 3)
    positive = functional.relu(features)
    squares = [functional.max_pool2d(positive, 4 * n + 1, stride=1, padding=2 * n) for n in range(1, blocks + 1)]
    torch.testing.assert_close(pooling(features), positive + sum(squares))


def test_fusion_upsamples_to_the_finer_path_and_adds():
    fusion = MultiResolutionFusion([4, 4])
    for conv in fusion.convs:
        _identity(conv)
    fine, coarse = _pixels(1, 4, 9, 13), _pixels(1, 4, 5, 7, seed=2)
    torch.testing.assert_close(fusion([fine, coarse]), fine + functional.interpolate(coarse, scale_factor=2, mode="bilinear")[..., :9, :13])
    assert MultiResolutionFusion([8, 12])([_pixels(1, 8, 6, 6), _pixels(1, 12, 3, 3)]).shape == (1, 8, 6, 6)


def test_a_unit_without_weights_is_the_identity():
    unit = ResidualConvUnit(4)
    nn.init.zeros_(unit.conv2.weight)
    features = _pixels(1, 4, 6, 7)
    torch.testing.assert_close(unit(features), features)
    torch.testing.assert_close(features, _pixels(1, 4, 6, 7))
    assert RefineNetBlock([8], 2).fusion is None


@settings(max_examples=20)
@given(radius=st.integers(0, 4), size=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_two_thin_kernels_make_a_dense_one(radius: int, size: tuple[int, int]):
    convolution = GlobalConvolution(3, 2, 2 * radius + 1)
    for conv in convolution.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.zeros_(conv.bias)
    (tall, wide), (broad, high) = [[conv.weight for conv in branch] for branch in (convolution.left, convolution.right)]
    dense = torch.einsum("mci,omj->ocij", tall[..., 0], wide[..., 0, :]) + torch.einsum("mcj,omi->ocij", broad[..., 0, :], high[..., 0])
    features = _pixels(1, 3, *size)
    torch.testing.assert_close(convolution(features), functional.conv2d(features, dense, padding=radius), rtol=1e-4, atol=1e-5)


def test_boundary_refinement_is_a_residue():
    refinement = BoundaryRefinement(3)
    nn.init.zeros_(refinement.conv2.weight)
    nn.init.zeros_(refinement.conv2.bias)
    scores = _pixels(1, 3, 6, 7)
    torch.testing.assert_close(refinement(scores), scores)


@pytest.mark.parametrize("depth", [3, 5])
def test_the_auxiliary_head_of_pspnet_changes_no_answer(depth: int):
    options = {"encoder_name": "resnet18", "encoder_depth": depth}
    theirs = smp.PSPNet(encoder_weights=None, classes=4, upsampling=8 if depth == 3 else 32, **options).eval()
    ours = build("pspnet", 3, 4, auxiliary=True, **options).eval()
    unused = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not unused.unexpected_keys
    assert all(key.startswith("aux_classifier.") for key in unused.missing_keys)
    pixels = _pixels(2, 3, 64, 96)
    with torch.inference_mode():
        logits, auxiliary = ours.forward_with_auxiliary(pixels)
        assert torch.equal(logits, theirs(pixels))
        assert torch.equal(logits, ours(pixels))
        assert auxiliary.shape == logits.shape
        odd, _ = ours.forward_with_auxiliary(pixels[..., :50, :77])
        assert torch.equal(odd, ours(pixels[..., :50, :77]))


def test_pspnet_as_in_its_paper_is_dilated():
    network = build("pspnet", 3, 4, encoder_name="resnet18", encoder_depth=5, encoder_output_stride=8).eval()
    assert network.stride == 8
    assert network.encoder(_pixels(1, 3, 64, 64))[-1].shape[-2:] == (8, 8)
    assert [block.pool_size for block in network.decoder.psp.blocks] == [1, 2, 3, 6]
    assert network(_pixels(1, 3, 64, 64)).shape == (1, 4, 64, 64)
