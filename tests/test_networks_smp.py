"""Networks of segmentation-models-pytorch answer through our adapter as they do without it."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from geoseg.networks import build, find, names

_VIT = {
    "encoder_name": "tu-vit_tiny_patch16_224",
    "decoder_intermediate_channels": [16, 16, 16, 16],
    "decoder_fusion_channels": 16,
}
_OPTIONS = {"dpt": _VIT, "segformer": {"encoder_name": "mit_b0"}, "unet": {"encoder_name": "tu-resnet10t"}}
_LEAST = {"pan": 128}
_STEPS = {"dpt": 32}


@pytest.mark.parametrize("name", [name for name in names() if find(name).kind == "smp"])
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
