"""The losses."""

from geoseg.losses.partial import PartialLabelLoss, balanced_weights, partial_cross_entropy

__all__ = ["PartialLabelLoss", "balanced_weights", "partial_cross_entropy"]
