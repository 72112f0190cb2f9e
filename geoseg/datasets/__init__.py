"""ISPRS, SpaceNet and plain folders, as scenes with labels."""

from geoseg.datasets.labelled import LabelledImage, LabelledSet, read_codes

__all__ = ["LabelledImage", "LabelledSet", "read_codes"]
