"""PSPNet of segmentation-models-pytorch, with the dilated trunk and the auxiliary loss of the paper."""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
from torch import Tensor
from torch.nn import functional

from geoseg.networks.resnet import fcn_head, resized


class PSPNet(smp.PSPNet):  # type: ignore[misc]
    """Means of the last map over 1, 2 x 2, 3 x 3 and 6 x 6 bins, beside the map itself (Zhao et al. 2017, figure 3).

    The defaults are the library's: an encoder of three stages. The paper's network has ``encoder_name="resnet101"``,
    ``encoder_depth=5`` and ``encoder_output_stride=8``; its auxiliary loss is on the last stage but one (section 4, figure 4).

    Args:
        encoder_name: of segmentation-models-pytorch, or of timm with ``tu-`` before it.
        encoder_weights: None; see :mod:`geoseg.networks.weights`.
        encoder_depth: stages of the encoder, 3 to 5.
        encoder_output_stride: 32, or 16 or 8: then later stages are dilated instead of strided.
        psp_out_channels: of the convolution after the pyramid.
        decoder_use_norm: as the library has it.
        psp_dropout: share of those channels that are left out in training.
        in_channels: bands of the input.
        classes: of the output.
        upsampling: of the scores; None for what gives the size of the input.
        auxiliary: whether to hold the second head, which only training uses.
    """

    def __init__(
        self,
        encoder_name: str = "resnet34",
        encoder_weights: None = None,
        encoder_depth: int = 3,
        encoder_output_stride: int = 32,
        psp_out_channels: int = 512,
        decoder_use_norm: bool | str | dict[str, Any] = "batchnorm",
        psp_dropout: float = 0.2,
        in_channels: int = 3,
        classes: int = 1,
        upsampling: int | None = None,
        *,
        auxiliary: bool = False,
    ) -> None:
        super().__init__(
            encoder_name=encoder_name,
            encoder_weights=encoder_weights,
            encoder_depth=encoder_depth,
            psp_out_channels=psp_out_channels,
            decoder_use_norm=decoder_use_norm,
            psp_dropout=psp_dropout,
            in_channels=in_channels,
            classes=classes,
            upsampling=min(encoder_output_stride, 2**encoder_depth) if upsampling is None else upsampling,
            output_stride=encoder_output_stride,
        )
        self.aux_classifier = fcn_head(self.encoder.out_channels[-2], classes) if auxiliary else None

    def forward_with_auxiliary(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads, each (N, K, H, W); for training a network that was built with ``auxiliary``.

        Raises:
            RuntimeError: if there is no auxiliary head.
        """
        if self.aux_classifier is None:
            raise RuntimeError("built without auxiliary head; build with auxiliary=True to train it")
        height, width = pixels.shape[-2:]
        filled = functional.pad(pixels, (0, -width % self.encoder.output_stride, 0, -height % self.encoder.output_stride))
        features = self.encoder(filled)
        logits, auxiliary = self.segmentation_head(self.decoder(features)), resized(self.aux_classifier(features[-2]), filled)
        return logits[..., :height, :width], auxiliary[..., :height, :width]
