from copy import deepcopy
from functools import cache

import pytest
import torch
from torchvision.models.segmentation import fcn_resnet50

from geoseg.errors import CardError
from geoseg.networks import build, names
from geoseg.networks.fold import fold_batch_norms

_SMALL = {
    "dpt": {
        "encoder_name": "tu-vit_tiny_patch16_224",
        "decoder_intermediate_channels": [16, 16, 16, 16],
        "decoder_fusion_channels": 16,
    },
    "fcn_resnet50": {},
    "segformer": {"encoder_name": "mit_b0", "decoder_segmentation_channels": 32},
    "unet": {"encoder_name": "tu-resnet10t", "decoder_channels": [32, 16, 16, 8, 8]},
}
_SMALLEST = {"pan": 128}  # its feature pyramid halves the stride-16 map three times
_STRIDES = {"deeplabv3": 8, "deeplabv3plus": 16, "dpt": 16, "fcn_resnet50": 8, "pan": 16, "pspnet": 8}


@cache
def _network(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(name, 4, 5, **_SMALL.get(name, {"encoder_name": "resnet18"})).eval()


def test_all_twelve_and_fcn():
    assert len(names()) == 13
    assert names() == tuple(sorted(names()))


@pytest.mark.parametrize("name", names())
def test_contract(name: str):
    network = _network(name)
    assert network.stride == _STRIDES.get(name, 32)
    size = _SMALLEST.get(name, 64)
    pixels = torch.randn(2, 4, size, size + 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        both = network(pixels)
        alone = network(pixels[1:])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert network(pixels[:1]).dtype == torch.float32
    assert both.shape == (2, 5, size, size + 32)
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-4)


def test_fcn_is_torchvisions():
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
    assert not any(key.startswith("aux") for key in _network("fcn_resnet50").state_dict())


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
        ("fcn_resnet50", {"depth": 3}, ["no option 'depth'", "auxiliary"]),
    ],
)
def test_odd_facts_are_refused(architecture, options, words):
    with pytest.raises(CardError) as caught:
        build(architecture, 3, 6, **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_names_in_any_case():
    assert build("FPN", 3, 2, encoder_name="tu-resnet10t").stride == 32


def _batch_norms(network: torch.nn.Module) -> list[torch.nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("name", names())
def test_folding_changes_no_answer(name: str):
    network = deepcopy(_network(name))
    draw = torch.Generator().manual_seed(2)
    for norm in _batch_norms(network):
        for values, low, high in ((norm.running_mean, -0.2, 0.2), (norm.running_var, 0.5, 2), (norm.weight.data, 0.5, 1.5)):
            values.uniform_(low, high, generator=draw)
    folded = fold_batch_norms(network, 4)
    assert folded is not network
    assert folded.stride == network.stride
    assert len(_batch_norms(folded)) < len(_batch_norms(network))
    pixels = torch.randn(1, 4, 128, 160, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(folded(pixels), network(pixels), rtol=1e-3, atol=1e-3)


class Twice(torch.nn.Module):
    """A network that uses the result of a convolution beside the batch norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.BatchNorm2d(2)
        self.norm.running_mean.fill_(1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.conv(pixels)
        return features + self.norm(features)


def test_a_network_that_cannot_be_folded_stays_as_it_is():
    network = Twice().eval()
    assert fold_batch_norms(network, 1) is network
    plain = torch.nn.Conv2d(1, 2, 1).eval()
    assert isinstance(fold_batch_norms(plain, 1), torch.nn.Conv2d)
