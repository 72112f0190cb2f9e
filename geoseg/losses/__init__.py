"""The losses."""

from geoseg.losses.borders import border_weights
from geoseg.losses.partial import PartialLabelLoss, balanced_weights, partial_cross_entropy
from geoseg.losses.sums import SummedLoss, Term

__all__ = ["PartialLabelLoss", "SummedLoss", "Term", "balanced_weights", "border_weights", "partial_cross_entropy"]
