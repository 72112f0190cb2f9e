"""The architectures."""

from geoseg.networks.build import Network, build, names

__all__ = ["Network", "build", "names"]
