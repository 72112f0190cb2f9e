"""Networks of segmentation-models-pytorch, for inputs of any size."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

_STRIDES = {"PAN": 8}  # the least an input must measure: its feature pyramid attention halves the last map three times
_STEPS = {"DPT": 2}  # what an input must measure a multiple of: its coarsest level halves the map of patches


class AnySize(nn.Module):
    """Fills up height and width with zeros, right and below, to multiples of the stride, and crops the answer.

    Zeros are what convolutions see outside, too. An input that the library takes goes in as it is.

    Attributes:
        stride: of the network.
        strides: the least an input must measure, in strides.
        steps: what an input must measure a multiple of, in strides.
    """

    stride: int
    strides = 1
    steps = 1

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) of scaled pixels (N, B, H, W)."""
        height, width = pixels.shape[-2:]
        step, least = self.steps * self.stride, self.strides * self.stride
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
    facts = {"strides": _STRIDES.get(name, 1), "steps": _STEPS.get(name, 1), "__doc__": maker.__doc__}
    return type(name, (AnySize, maker), facts)
