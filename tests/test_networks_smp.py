"""Networks of segmentation-models-pytorch answer through our adapter as they do without it."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional
from torchvision.models import ResNet34_Weights, segmentation

from geoseg.networks import build, find, names

_VIT = {
    "encoder_name": "tu-vit_tiny_patch16_224",
    "decoder_intermediate_channels": [16, 16, 16, 16],
    "decoder_fusion_channels": 16,
}
_OPTIONS = {"dpt": _VIT, "segformer": {"encoder_name": "mit_b0"}, "unet": {"encoder_name": "tu-resnet10t"}}
_LEAST = {"pan": 128}
_STEPS = {"dpt": 32}
_NAMES = [name for name in names() if find(name).kind == "smp"]


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", _NAMES)
def test_as_large_as_the_library_says_and_its_encoder_as_torchvision_says(name: str):
    """The library's own class with its own defaults; ResNet-34 less the 512 x 1000 weights and 1000 biases of its classifier."""
    with torch.device("meta"):
        ours = build(name, 3, 21)
        theirs = getattr(smp, type(ours).__name__)(encoder_weights=None, in_channels=3, classes=21)
    assert count(ours) == count(theirs)
    if name != "dpt":
        assert count(ours.encoder) == ResNet34_Weights.IMAGENET1K_V1.meta["num_params"] - 513_000


def test_segformer_b4_has_the_64_million_parameters_of_its_abstract():
    """Xie et al. 2021; 150 classes of ADE20K, and a decoder of 768 channels (their appendix)."""
    assert round(count(build("segformer", 3, 150, encoder_name="mit_b4", decoder_segmentation_channels=768)) / 1e6) == 64


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("fcn_resnet50", "FCN_ResNet50_Weights"),
        ("fcn_resnet101", "FCN_ResNet101_Weights"),
        ("deeplabv3_resnet50", "DeepLabV3_ResNet50_Weights"),
        ("deeplabv3_resnet101", "DeepLabV3_ResNet101_Weights"),
    ],
)
def test_as_large_as_torchvisions_class_and_as_torchvision_published(name: str, weights: str):
    with torch.device("meta"):
        ours = count(build(name, 3, 21, auxiliary=True))
        theirs = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    assert ours == count(theirs) == getattr(segmentation, weights).COCO_WITH_VOC_LABELS_V1.meta["num_params"]


@pytest.mark.parametrize("name", _NAMES)
def test_equal_to_the_library(name: str):
    options = _OPTIONS.get(name, {"encoder_name": "resnet18"})
    torch.manual_seed(0)
    ours = build(name, 4, 5, **options).eval()
    extra = {"dynamic_img_size": True} if name == "dpt" else {}
    theirs = getattr(smp, ours.__class__.__name__)(encoder_weights=None, in_channels=4, classes=5, **options, **extra).eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(2, 4, 128, 160, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(ours(pixels), theirs(pixels))
        odd = pixels[..., :33, :97]
        step = _STEPS.get(name, ours.stride)
        height, width = (max(-(-length // step) * step, _LEAST.get(name, 0)) for length in (33, 97))
        filled = functional.pad(odd, (0, width - 97, 0, height - 33))
        assert torch.equal(ours(odd), theirs(filled)[..., :33, :97])


def test_deeplabv3plus_with_an_aligned_xception_of_65_layers():
    """Chen et al. 2018, section 3.2 and figure 4; output stride 16: the last stage is dilated instead of strided."""
    network = build("deeplabv3plus", 3, 2, encoder_name="tu-xception65").eval()
    assert network.stride == 16
    with torch.inference_mode():
        assert [features.shape[-1] for features in network.encoder(torch.zeros(1, 3, 64, 64))] == [64, 32, 16, 8, 4, 4]
        assert network(torch.zeros(1, 3, 50, 70)).shape == (1, 2, 50, 70)
