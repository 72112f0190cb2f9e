"""Where chips come from, and how they are cut and varied."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from geoseg.datasets import LabelledSet, Layout, read_set
from geoseg.legend import Legend


class Source(BaseModel):
    """Which images of a set are used, and how often.

    Attributes:
        set: folder below the data folder.
        layout: of the folder: ``set`` (images, labels and a ``set.yaml``), ``scenes`` (a ``scenes.yaml``), ``potsdam``,
            ``vaihingen``, ``spacenet``, ``loveda``, ``landcoverai`` or ``openearthmap``.
        eroded: for the ISPRS layouts, whether pixels at boundaries are unlabelled.
        touched: for SpaceNet, whether all pixels that a footprint touches are building.
        border_m: for SpaceNet, width in metres of the rim of footprints that is of class ``border``; 0 for none.
        contact_m: for SpaceNet, footprints nearer than this, in metres, have class ``contact`` between them; 0 for none.
        part: of the set.
        keep: patterns of image names, at least one of which must match.
        drop: patterns of image names, none of which may match.
        weight: chance of a chip to come from here, relative to the other sources.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    set: str
    layout: Layout = "set"
    eroded: bool = False
    touched: bool = False
    border_m: float = Field(default=0.0, ge=0)
    contact_m: float = Field(default=0.0, ge=0)
    part: str = "train"
    keep: tuple[str, ...] = ("*",)
    drop: tuple[str, ...] = ()
    weight: float = Field(default=1.0, gt=0)

    @property
    def data(self) -> tuple[str | float, ...]:
        """What of the source decides the labelled set, apart from the choice of images in it."""
        return self.set, self.layout, self.eroded, self.touched, self.border_m, self.contact_m

    def read(self, root: Path, legend: Legend, bands: tuple[str, ...]) -> LabelledSet:
        """Find the images and labels.

        Raises:
            OptionsError: if the folder is not what the layout says.
            BandsError: if its images do not have the bands.
        """
        folder, eroded, touched = root / self.set, self.eroded, self.touched
        return read_set(
            folder, self.layout, legend, bands, eroded=eroded, touched=touched, border_m=self.border_m, contact_m=self.contact_m
        )


class ChipOptions(BaseModel):
    """How chips are cut and varied; each ``jitter`` is the largest change, 0 for none.

    Attributes:
        size: height and width in pixels.
        batch: chips a batch.
        scale: smallest and largest pixel of a chip, relative to the card's resolution.
        upsampling: a source pixel becomes at most this many chip pixels a side.
        rare: share of chips centred on a pixel of a class drawn evenly, instead of anywhere.
        rotate: share of chips turned by any angle; the others by quarter turns.
        brightness: jitter of the logarithm of the gain, all bands alike.
        colour: jitter of the logarithm of the gain of each band.
        gamma: jitter of the logarithm of the exponent.
        contrast: jitter of the logarithm of the contrast.
        saturation: jitter of the logarithm of the saturation.
        hue: largest turn of the hue of the first three bands, of a full turn.
        noise: largest standard deviation of noise, of values in 0..1.
        blur: share of chips that are blurred.
        jpeg: share of chips that went through a JPEG of quality 20 to 90.
        elastic: largest shift in pixels of a smooth random deformation (Ronneberger et al. 2015, section 3.1); up to a tenth of ``size``,
            so that it does not fold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=32)
    batch: int = Field(ge=1)
    scale: tuple[float, float]
    upsampling: float = Field(default=2.0, ge=1)
    rare: float = Field(default=0.5, ge=0, le=1)
    rotate: float = Field(default=0.5, ge=0, le=1)
    brightness: float = Field(default=0.0, ge=0)
    colour: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0)
    saturation: float = Field(default=0.0, ge=0)
    hue: float = Field(default=0.0, ge=0, le=0.5)
    noise: float = Field(default=0.0, ge=0)
    blur: float = Field(default=0.0, ge=0, le=1)
    jpeg: float = Field(default=0.0, ge=0, le=1)
    elastic: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _does_not_fold(self) -> ChipOptions:
        if self.elastic > self.size / 10:
            raise ValueError(f"elastic is {self.elastic:g}, expected at most a tenth of size, {self.size / 10:g}")
        return self
