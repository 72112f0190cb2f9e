"""Every architecture, and the paper that it is from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import segmentation_models_pytorch as smp
from torch import nn

from geoseg.networks.deeplab import DeepLabV1, DeepLabV2
from geoseg.networks.deeplabv3 import DeepLabV3ResNet50, DeepLabV3ResNet101
from geoseg.networks.dilated import Dilated
from geoseg.networks.fcn import FCNResNet50, FCNResNet50Skip, FCNResNet101
from geoseg.networks.fcn_vgg import FCN8s, FCN16s, FCN32s
from geoseg.networks.gcn import GCN
from geoseg.networks.pspnet import PSPNet
from geoseg.networks.refinenet import RefineNet
from geoseg.networks.segnet import SegNet
from geoseg.networks.unet import UNetOriginal

Kind = Literal["geoseg", "smp", "torchvision"]

_GIVEN = {"self", "architecture", "encoder_weights", "in_channels", "bands", "classes", "activation", "aux_params", "kwargs"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture, and the paper that it is from.

    Attributes:
        name: as its builder knows it (:func:`geoseg.networks.build`, and `build` of :mod:`geoseg.networks.maskrcnn`).
        title: as its paper calls it, e.g. ``FCN-8s``.
        maker: gives the network: called with ``bands``, ``classes`` and options by name; of kind ``smp``, with the library's words.
        authors: family names.
        year: of publication.
        paper: its title.
        reference: where the paper is found: an arXiv number, or a DOI where there is none.
        kind: where the code is from: ``geoseg`` (written here after the paper), ``smp`` (segmentation-models-pytorch) or ``torchvision``.
    """

    name: str
    title: str
    maker: Callable[..., nn.Module]
    authors: str
    year: int
    paper: str
    reference: str
    kind: Kind = "geoseg"

    @property
    def options(self) -> dict[str, Any]:
        """Default of each option."""
        parameters = inspect.signature(self.maker).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name not in _GIVEN}


_FCN = ("Long, Shelhamer, Darrell", 2015, "Fully Convolutional Networks for Semantic Segmentation", "arXiv:1411.4038")
_UNET = (
    "Ronneberger, Fischer, Brox",
    2015,
    "U-Net: Convolutional Networks for Biomedical Image Segmentation",
    "arXiv:1505.04597",
)
_DEEPLABV3 = (
    "Chen, Papandreou, Schroff, Adam",
    2017,
    "Rethinking Atrous Convolution for Semantic Image Segmentation",
    "arXiv:1706.05587",
)

_ALL = (
    Architecture(
        "deeplabv1",
        "DeepLab-LargeFOV",
        DeepLabV1,
        "Chen, Papandreou, Kokkinos, Murphy, Yuille",
        2015,
        "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs",
        "arXiv:1412.7062",
    ),
    Architecture(
        "deeplabv2",
        "DeepLabv2 (ASPP)",
        DeepLabV2,
        "Chen, Papandreou, Kokkinos, Murphy, Yuille",
        2018,
        "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully Connected CRFs",
        "arXiv:1606.00915",
    ),
    Architecture("deeplabv3", "DeepLabv3", smp.DeepLabV3, *_DEEPLABV3, "smp"),
    Architecture("deeplabv3_resnet101", "DeepLabv3, ResNet-101", DeepLabV3ResNet101, *_DEEPLABV3, "torchvision"),
    Architecture("deeplabv3_resnet50", "DeepLabv3, ResNet-50", DeepLabV3ResNet50, *_DEEPLABV3, "torchvision"),
    Architecture(
        "deeplabv3plus",
        "DeepLabv3+",
        smp.DeepLabV3Plus,
        "Chen, Zhu, Papandreou, Schroff, Adam",
        2018,
        "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation",
        "arXiv:1802.02611",
        "smp",
    ),
    Architecture(
        "dilated",
        "Dilation8",
        Dilated,
        "Yu, Koltun",
        2016,
        "Multi-Scale Context Aggregation by Dilated Convolutions",
        "arXiv:1511.07122",
    ),
    Architecture(
        "dpt",
        "DPT",
        smp.DPT,
        "Ranftl, Bochkovskiy, Koltun",
        2021,
        "Vision Transformers for Dense Prediction",
        "arXiv:2103.13413",
        "smp",
    ),
    Architecture("fcn16s", "FCN-16s", FCN16s, *_FCN),
    Architecture("fcn32s", "FCN-32s", FCN32s, *_FCN),
    Architecture("fcn8s", "FCN-8s", FCN8s, *_FCN),
    Architecture("fcn_resnet101", "FCN, dilated ResNet-101", FCNResNet101, *_FCN, "torchvision"),
    Architecture("fcn_resnet50", "FCN, dilated ResNet-50", FCNResNet50, *_FCN, "torchvision"),
    Architecture("fcn_resnet50_skip", "FCN, ResNet-50 with skips", FCNResNet50Skip, *_FCN),
    Architecture(
        "fpn",
        "Semantic FPN",
        smp.FPN,
        "Kirillov, Girshick, He, Dollár",
        2019,
        "Panoptic Feature Pyramid Networks",
        "arXiv:1901.02446",
        "smp",
    ),
    Architecture(
        "gcn",
        "GCN",
        GCN,
        "Peng, Zhang, Yu, Luo, Sun",
        2017,
        "Large Kernel Matters: Improve Semantic Segmentation by Global Convolutional Network",
        "arXiv:1703.02719",
    ),
    Architecture(
        "linknet",
        "LinkNet",
        smp.Linknet,
        "Chaurasia, Culurciello",
        2017,
        "LinkNet: Exploiting Encoder Representations for Efficient Semantic Segmentation",
        "arXiv:1707.03718",
        "smp",
    ),
    Architecture(
        "manet",
        "MA-Net",
        smp.MAnet,
        "Fan, Wang, Li, Wang",
        2020,
        "MA-Net: A Multi-Scale Attention Network for Liver and Tumor Segmentation",
        "doi:10.1109/ACCESS.2020.3025372",
        "smp",
    ),
    Architecture(
        "pan",
        "PAN",
        smp.PAN,
        "Li, Xiong, An, Wang",
        2018,
        "Pyramid Attention Network for Semantic Segmentation",
        "arXiv:1805.10180",
        "smp",
    ),
    Architecture(
        "pspnet",
        "PSPNet",
        PSPNet,
        "Zhao, Shi, Qi, Wang, Jia",
        2017,
        "Pyramid Scene Parsing Network",
        "arXiv:1612.01105",
        "smp",
    ),
    Architecture(
        "refinenet",
        "RefineNet",
        RefineNet,
        "Lin, Milan, Shen, Reid",
        2017,
        "RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation",
        "arXiv:1611.06612",
    ),
    Architecture(
        "segformer",
        "SegFormer",
        smp.Segformer,
        "Xie, Wang, Yu, Anandkumar, Alvarez, Luo",
        2021,
        "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
        "arXiv:2105.15203",
        "smp",
    ),
    Architecture(
        "segnet",
        "SegNet",
        SegNet,
        "Badrinarayanan, Kendall, Cipolla",
        2017,
        "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
        "arXiv:1511.00561",
    ),
    Architecture("unet", "U-Net with an encoder", smp.Unet, *_UNET, "smp"),
    Architecture("unet_original", "U-Net", UNetOriginal, *_UNET),
    Architecture(
        "unetplusplus",
        "UNet++",
        smp.UnetPlusPlus,
        "Zhou, Siddiquee, Tajbakhsh, Liang",
        2018,
        "UNet++: A Nested U-Net Architecture for Medical Image Segmentation",
        "arXiv:1807.10165",
        "smp",
    ),
    Architecture(
        "upernet",
        "UPerNet",
        smp.UPerNet,
        "Xiao, Liu, Zhou, Jiang, Sun",
        2018,
        "Unified Perceptual Parsing for Scene Understanding",
        "arXiv:1807.10221",
        "smp",
    ),
)

ARCHITECTURES: dict[str, Architecture] = {architecture.name: architecture for architecture in sorted(_ALL, key=lambda each: each.name)}
"""Every architecture that answers with classes, by its name."""
