"""Turn large aerial and satellite scenes into maps."""

from geoseg._version import __version__

__all__ = ["__version__"]
