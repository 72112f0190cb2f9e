"""Turn large aerial and satellite scenes into maps.

The functions people call, each loaded when it is first used, so that importing geoseg imports neither torch nor dask:
`predict` (scene to map), `batch` (many scenes), `vectorize` (class raster to polygons), `segment` (xarray to xarray, lazily),
`train` (labels to model), `export` (model to ONNX file), `inspect` and `estimate` (what a scene is, and what predicting it would
take). Types: `Options`, `Shaping`, `Policy`, `Settings` (of a batch), `Cluster`, `ModelCard`, `Legend`, and the errors, all below
`GeosegError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoseg._version import __version__
from geoseg.errors import GeosegError

if TYPE_CHECKING:
    from geoseg.card import ModelCard
    from geoseg.cluster import Cluster
    from geoseg.engine import Options
    from geoseg.legend import Legend
    from geoseg.policy import Policy
    from geoseg.polygons.shaping import Shaping
    from geoseg.verbs.batch import Settings, batch
    from geoseg.verbs.export import export
    from geoseg.verbs.inspect import estimate, inspect
    from geoseg.verbs.predict import predict
    from geoseg.verbs.segment import segment
    from geoseg.verbs.train import train
    from geoseg.verbs.vectorize import vectorize

_HOMES = {
    "Cluster": "geoseg.cluster",
    "Legend": "geoseg.legend",
    "ModelCard": "geoseg.card",
    "Options": "geoseg.engine",
    "Policy": "geoseg.policy",
    "Settings": "geoseg.verbs.batch",
    "Shaping": "geoseg.polygons.shaping",
    "batch": "geoseg.verbs.batch",
    "estimate": "geoseg.verbs.inspect",
    "export": "geoseg.verbs.export",
    "inspect": "geoseg.verbs.inspect",
    "predict": "geoseg.verbs.predict",
    "segment": "geoseg.verbs.segment",
    "train": "geoseg.verbs.train",
    "vectorize": "geoseg.verbs.vectorize",
}

__all__ = [
    "Cluster",
    "GeosegError",
    "Legend",
    "ModelCard",
    "Options",
    "Policy",
    "Settings",
    "Shaping",
    "__version__",
    "batch",
    "estimate",
    "export",
    "inspect",
    "predict",
    "segment",
    "train",
    "vectorize",
]


def __getattr__(name: str) -> Any:
    """Load a function or type from its home when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'geoseg' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
