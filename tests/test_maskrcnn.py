"""torchvision's own Mask R-CNN is the oracle."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision.models import detection, resnet50
from torchvision.models.detection.roi_heads import paste_masks_in_image

from geoseg.detector import cropped
from geoseg.errors import CardError, OptionsError
from geoseg.networks.maskrcnn import Detections, build, names
from geoseg.networks.reach import KNOWN, reach
from geoseg.networks.stem import adapted
from geoseg.networks.weights import load_resnet

SIZE, MOST = 128, 12


@cache
def _theirs(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    maker = getattr(detection, name)
    same = {"min_size": SIZE, "max_size": SIZE, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    model = maker(weights=None, weights_backbone=None, num_classes=4, box_score_thresh=0.01, box_detections_per_img=MOST, **same).eval()
    with torch.no_grad():  # random weights find nothing: make the heads lively
        model.rpn.head.cls_logits.weight.mul_(50)
        model.roi_heads.box_predictor.cls_score.weight.mul_(20)
        model.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(20)
    return model


def _ours(name: str) -> torch.nn.Module:
    network = build(name, 3, 3, score_threshold=0.01, most=MOST).eval()
    network.load_state_dict(_theirs(name).state_dict())
    return network


@pytest.mark.parametrize("name", names())
def test_it_is_torchvisions(name: str) -> None:
    pixels = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = _theirs(name)(list(pixels)), _ours(name)(pixels)
    for theirs, ours in zip(expected, found, strict=True):
        assert len(theirs["boxes"]) > 5
        torch.testing.assert_close(ours.boxes, theirs["boxes"])
        torch.testing.assert_close(ours.scores, theirs["scores"])
        assert ours.labels.tolist() == theirs["labels"].tolist()
        _compare_masks(ours, theirs["masks"][:, 0] >= 0.5)


def _compare_masks(ours: Detections, masks: torch.Tensor) -> None:
    for (mask, row, col), whole in zip(cropped(ours, (SIZE, SIZE)), masks.numpy(), strict=True):
        pasted = np.zeros((SIZE, SIZE), bool)
        pasted[row : row + mask.shape[0], col : col + mask.shape[1]] = mask
        np.testing.assert_array_equal(pasted, whole)


def test_masks_are_pasted_as_theirs() -> None:
    generator = torch.Generator().manual_seed(2)
    corners = torch.rand(60, 2, 2, generator=generator) * (SIZE + 40) - 20
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1).clamp(0, SIZE)
    masks = torch.rand(60, 28, 28, generator=generator)
    expected = paste_masks_in_image(masks[:, None], boxes, (SIZE, SIZE))[:, 0] >= 0.5
    _compare_masks(Detections(boxes, torch.ones(60, dtype=torch.int64), torch.ones(60), masks), expected)


@pytest.mark.parametrize(("name", "weights"), [("", "MaskRCNN_ResNet50_FPN_Weights"), ("_v2", "MaskRCNN_ResNet50_FPN_V2_Weights")])
def test_as_many_parameters_as_published(name: str, weights: str) -> None:
    """``meta["num_params"]`` of torchvision's weights; in v1 it counts the affine parts of batch norms, frozen there, as no parameters."""
    network = build(f"maskrcnn_resnet50_fpn{name}", 3, 90)
    frozen = 0 if name else sum(p.numel() for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters())
    published = getattr(detection, weights).COCO_V1.meta["num_params"]
    assert sum(p.numel() for p in network.parameters()) - frozen == published


class Proposals(torch.nn.Module):
    """What the first stage says of each pixel, on all levels of the pyramid."""

    stride = 64

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        answers = self.network.rpn.head(list(self.network.backbone(pixels).values()))
        height, width = pixels.shape[-2:]
        return torch.cat(
            [
                torch.nn.functional.interpolate(each, scale_factor=side)[..., :height, :width]
                for levels in answers
                for each, side in zip(levels, (4, 8, 16, 32, 64), strict=True)
            ],
            dim=1,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_the_known_reach_is_asked_again(name: str) -> None:
    assert reach(Proposals(build(name, 3, 1).eval()), 3) == KNOWN[name]


@pytest.mark.parametrize("name", names()[:1])
def test_a_tile_answers_as_the_whole_does_beyond_the_reach(name: str) -> None:
    """The same proposals and, for the same proposals, the same boxes, scores and masks: no tile is resized, cells begin where they did."""
    network, far, left = _ours(name), KNOWN[name], 192
    whole = torch.rand(1, 3, 64, left + 2 * far + 64 + 2 * 64, generator=torch.Generator().manual_seed(4))
    whole = whole[..., : whole.shape[-1] // 64 * 64]
    inside = slice(-(-far // 64) * 64, whole.shape[-1] - left - far)
    with torch.inference_mode():
        first, second = (Proposals(network)(pixels) for pixels in (whole[..., left:], whole))
        torch.testing.assert_close(first[..., inside], second[..., left:][..., inside], rtol=1e-3, atol=1e-4)
        box = torch.tensor([[0.0, 8.0, 40.0, 44.0], [5.5, 3.25, 29.0, 60.0]])
        answers = []
        for pixels, begin in ((whole[..., left:], inside.start), (whole, left + inside.start)):
            moved = box + torch.tensor([begin, 0, begin, 0])
            found, _ = network.roi_heads(network.backbone(pixels), [moved], [pixels.shape[-2:]])
            answers.append({**found[0], "boxes": found[0]["boxes"] - torch.tensor([begin, 0, begin, 0])})
    assert len(answers[0]["boxes"]) > 0
    for key, tolerance in (("boxes", 1e-2), ("scores", 1e-4), ("masks", 1e-3)):
        torch.testing.assert_close(answers[0][key], answers[1][key], rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, 4, 2)
    masks = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8)
    masks[0, 20:60, 30:90] = 1
    target = {"boxes": torch.tensor([[30.0, 20.0, 90.0, 60.0]]), "labels": torch.tensor([2]), "masks": masks}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": masks[:0]}
    losses = network.losses(torch.rand(2, 4, SIZE, SIZE), [target, empty])
    assert sorted(losses) == ["loss_box_reg", "loss_classifier", "loss_mask", "loss_objectness", "loss_rpn_box_reg"]
    sum(losses.values()).backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


def test_a_batch_changes_nothing_and_boxes_are_float32_under_autocast() -> None:
    network = _ours("maskrcnn_resnet50_fpn")
    pixels = torch.rand(2, 3, SIZE, 64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        both, (alone,) = network(pixels), network(pixels[1:])
        with torch.autocast("cpu", torch.bfloat16):
            (half,) = network(pixels[1:])
    torch.testing.assert_close(both[1].boxes, alone.boxes, rtol=1e-3, atol=1e-2)
    assert half.boxes.dtype == half.masks.dtype == torch.float32


def test_encoders_begin_with_weights_of_a_resnet(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = resnet50(weights=None).state_dict()
    safetensors.torch.save_file(state, tmp_path / "resnet50.safetensors")
    torch.save(state, tmp_path / "resnet50.pth")
    network = build("maskrcnn_resnet50_fpn", 3, 1)
    for suffix in ("safetensors", "pth"):
        load_resnet(network.backbone.body, "resnet50", 3, tmp_path / f"resnet50.{suffix}")
        torch.testing.assert_close(network.backbone.body.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
    four = build("maskrcnn_resnet50_fpn", 4, 1)
    load_resnet(four.backbone.body, "resnet50", 4, tmp_path / "resnet50.pth")
    torch.testing.assert_close(four.backbone.body.conv1.weight, adapted(state["conv1.weight"], 4))
    torch.save({"conv1.weight": state["conv1.weight"]}, tmp_path / "part.pth")
    for name, words in (
        ("part.pth", "not the weights of a resnet50"),
        ("nowhere.pth", "no encoder weights"),
        ("nowhere", "has no weights"),
    ):
        with pytest.raises(OptionsError, match=f"{name}.*{words}|{words}.*{name}"):
            load_resnet(network.backbone.body, "resnet50", 3, tmp_path / name)


@pytest.mark.parametrize(
    ("architecture", "options", "words"),
    [
        ("maskrcnn_resnet50", {}, "did you mean 'maskrcnn_resnet50_fpn'"),
        ("maskrcnn_resnet50_fpn", {"score_treshold": 0.1}, "did you mean 'score_threshold'"),
        ("maskrcnn_resnet50_fpn", {"anchors": [8, 16]}, "one for each of the 5 levels"),
    ],
)
def test_odd_facts_are_refused(architecture: str, options: dict, words: str) -> None:
    with pytest.raises(CardError, match=words):
        build(architecture, 3, 2, **options)
