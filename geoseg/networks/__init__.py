"""The architectures."""

from geoseg.networks.build import Network, build, find, names
from geoseg.networks.registry import Architecture

__all__ = ["Architecture", "Network", "build", "find", "names"]
