"""Published data sets and plain folders, as scenes with labels."""

from geoseg.datasets.labelled import LabelledImage, LabelledSet, read_codes
from geoseg.datasets.layouts import LAYOUTS, Layout, read_set
from geoseg.datasets.scenes import LabelledScene

__all__ = ["LAYOUTS", "LabelledImage", "LabelledScene", "LabelledSet", "Layout", "read_codes", "read_set"]
