"""Training pairs cut from scenes."""

from geoseg.chips.frames import Frame, Pool, SceneFrame, cut, in_units, native_range, resized
from geoseg.chips.options import ChipOptions, Source
from geoseg.chips.sampling import Chips
from geoseg.chips.variation import ranged, standardised, vary

__all__ = [
    "ChipOptions",
    "Chips",
    "Frame",
    "Pool",
    "SceneFrame",
    "Source",
    "cut",
    "in_units",
    "native_range",
    "ranged",
    "resized",
    "standardised",
    "vary",
]
