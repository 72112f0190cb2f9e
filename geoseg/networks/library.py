"""Networks of segmentation-models-pytorch, for inputs of any size."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

_LEAST = {"PAN": 8}  # strides that an input must measure: its feature pyramid attention halves the last map three times
_STEP = {"DPT": 2}  # strides of which an input must be a multiple: its coarsest map has half the resolution of the tokens


class AnySize(nn.Module):
    """Fills up height and width with zeros, right and below, to what the network can take, and crops the answer.

    Zeros are what convolutions see outside, too. An input whose sides are large enough multiples of the stride goes in as it is.
    """

    stride: int
    least = 1
    step = 1

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        height, width = pixels.shape[-2:]
        step, least = self.step * self.stride, self.least * self.stride
        right, below = (max(-length % step, least - length) for length in (width, height))
        if not right and not below:
            return self._inner(pixels)
        return self._inner(functional.pad(pixels, (0, right, 0, below)))[..., :height, :width]

    def _inner(self, pixels: Tensor) -> Tensor:
        answer: Tensor = super().forward(pixels)  # of the class of the library, which comes next in the order of resolution
        return answer


def of_any_size(maker: type[nn.Module]) -> type[nn.Module]:
    """The same class of the library for inputs of any size; names of parameters stay.

    Args:
        maker: e.g. ``segmentation_models_pytorch.Unet``.
    """
    name = maker.__name__
    return type(name, (AnySize, maker), {"least": _LEAST.get(name, 1), "step": _STEP.get(name, 1), "__doc__": maker.__doc__})
