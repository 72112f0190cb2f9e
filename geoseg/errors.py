"""Every way geoseg can refuse.

GeosegError
├── SceneError            the raster cannot be used
│   ├── GeoreferenceError   no CRS or no transform where one is needed
│   ├── BandsError          the card asks for bands the scene does not have
│   ├── ResolutionError     the scene's pixel is too far from the card's pixel
│   └── ReadError           a block of the file cannot be decoded (names file, window, cause)
├── CardError             a fact is missing or unknown, or the weights' hash differs
├── TilingError           tile, overlap and block do not fit together
├── OptionsError          a config key is unknown or of the wrong type
├── ResumeError           the work on disk belongs to another run
│   └── BusyError           another process is at it
├── OutputError           the result cannot be written (disk full, no permission, exists)
├── ClusterError          workers died or were not there
└── CoverageError         a pixel got no answer: our bug, please report

Every message says what was seen, what was expected, and what to do.
"""


class GeosegError(Exception):
    """Base of all refusals; the command line prints it as one line and exits with status 2."""


class SceneError(GeosegError):
    """The raster cannot be used."""


class GeoreferenceError(SceneError):
    """No CRS or no transform where one is needed."""


class BandsError(SceneError):
    """The card asks for bands the scene does not have."""


class ResolutionError(SceneError):
    """The scene's pixel is too far from the card's pixel."""


class ReadError(SceneError):
    """A block of the file cannot be decoded."""


class CardError(GeosegError):
    """A fact of the model is missing or unknown, or the weights' hash differs."""


class TilingError(GeosegError):
    """Tile, overlap and block do not fit together."""


class OptionsError(GeosegError):
    """A configuration key is unknown or of the wrong type."""


class ResumeError(GeosegError):
    """The work on disk belongs to another run."""


class BusyError(ResumeError):
    """Another process is at the same work."""


class OutputError(GeosegError):
    """The result cannot be written: disk full, no permission, or it exists."""


class ClusterError(GeosegError):
    """Workers died, or none was there that could do the work."""


class CoverageError(GeosegError):
    """A pixel got no answer: a bug in geoseg, please report it."""
