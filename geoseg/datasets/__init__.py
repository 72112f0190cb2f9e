"""ISPRS, SpaceNet and plain folders, as scenes with labels."""

from geoseg.datasets.labelled import LabelledImage, LabelledSet

__all__ = ["LabelledImage", "LabelledSet"]
