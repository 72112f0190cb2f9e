"""ONNX files that carry their own facts, in the words of the QGIS plugin Deepness.

The plugin (PUTvision/qgis-plugin-deepness, documentation "Model classes and requirements" and "Adding metadata to ONNX model")
takes a graph with one input ``(N, B, S, S)`` float32, whose values are pixels divided by 255, less ``standardization_mean``, over
``standardization_std``; and one output ``(N, K, S, S)``: scores of K classes (softmax), or of one class (sigmoid). Facts are JSON
values in the file's ``metadata_props``.

What is trusted of a file: that its graph may be computed. Nothing in it is run as code: operators other than ONNX's own are
refused, and so are tensors that are stored in other files. A graph that was made to do harm can still take time and memory.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from geoseg.card import ModelCard, Scaling
from geoseg.errors import CardError, OptionsError
from geoseg.legend import Legend
from geoseg.policy import printable

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

SUFFIX = ".onnx"
CARD_KEY = "geoseg_card"
"""Metadata key of the whole card, in files that geoseg made: what the plugin has no words for, such as licence and colours."""

MOST_BYTES = 2**31 - 1
"""Of a file: protocol buffers end there."""

_MOST_BANDS = 64
_MOST_CLASSES = 255
_MOST_TILE = 8192
_MOST_LETTERS = 65536
_TITLE_LETTERS = 100
_STRIDE = 32
_OVERLAP_PERCENT = 15.0  # the plugin's own
_THRESHOLD = 0.5  # the plugin's own
_LARGEST = 1e300
_RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file that was read, judged and understood.

    Attributes:
        path: printable, for messages.
        content: the file's bytes.
        card: what it says of itself; ``sha256`` is that of the file.
        side: height and width of the only tile it takes, pixels; None if it takes any.
        mean: per band, what is subtracted from pixels divided by 255 before they go in.
        std: per band, what the difference is divided by.
        threshold: from which score on a pixel belongs to the class; between 0 and 1 where the output has a single channel.
    """

    path: str
    content: bytes
    card: ModelCard
    side: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    threshold: float

    @property
    def feed(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per band, factor and summand that make the graph's input of pixels scaled as the card says."""
        facts = self.card.scaling
        span, bands = facts.high - facts.low, range(len(facts.mean))
        scale = tuple(span * facts.std[band] / (255 * self.std[band]) for band in bands)
        return scale, tuple(((span * facts.mean[band] + facts.low) / 255 - self.mean[band]) / self.std[band] for band in bands)


def is_onnx(model: str | Path) -> bool:
    """Whether a model is given as an ONNX file, by its name."""
    return Path(model).suffix.lower() == SUFFIX


def metadata(card: ModelCard) -> dict[str, str]:
    """The facts of a card as the plugin reads them, and the whole card beside.

    The plugin's own threshold and median filter are switched off, so that a pixel's class is that of its highest score. The
    graph is expected to take pixels divided by 255 and to standardise them itself: old versions of the plugin do not.

    Returns:
        JSON texts by key: ``resolution`` in centimetres, ``tiles_overlap`` in percent of the tile.
    """
    bands = len(card.bands)
    facts: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": {number: c.title for number, c in enumerate(card.legend.classes)},
        "resolution": round(100 * card.resolution_m, 6),
        "tile_size": card.tile,
        "tiles_overlap": round(100 * card.overlap / card.tile),
        "standardization_mean": [0.0] * bands,
        "standardization_std": [1.0] * bands,
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
        CARD_KEY: json.loads(card.to_json()),
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}


def read(path: str | Path) -> OnnxModel:
    """Read and judge an ONNX file.

    A file that geoseg did not make must say ``model_type`` (Segmentor), ``class_names`` and ``resolution``, and ``tile_size`` unless
    its graph takes one size only. Without ``tiles_overlap`` and ``seg_thresh`` the plugin's defaults hold, 15 % and 0.5; the latter
    decides for graphs of a single channel only. Three channels in are red, green and blue; other numbers of bands have no names.

    Raises:
        CardError: if the file is missing, is no ONNX file, is no segmentation model, does not say what is needed, or asks for
            more than is trusted.
        OptionsError: if the package onnx is missing.
    """
    shown = printable(str(path))
    content = _content(Path(path), shown)
    model = _parsed(content, shown)
    _check_trust(model, shown)
    bands, side = _input(model, shown)
    channels = _output(model, shown)
    facts = _Facts(shown, model)
    mean, std = facts.numbers("standardization_mean", bands, 0.0), facts.numbers("standardization_std", bands, 1.0)
    threshold = facts.number("seg_thresh", _THRESHOLD)
    if min(std) <= 0:
        raise CardError(f"{shown}: its metadata has standardization_std = {min(std):g}; expected numbers above 0")
    digest = hashlib.sha256(content).hexdigest()
    card = _own_card(facts, digest) if CARD_KEY in facts.texts else _card(facts, model, (bands, side, channels), (mean, std), digest)
    if len(card.bands) != bands or channels not in (None, len(card.legend), 1 if len(card.legend) == 2 else None):
        raise CardError(
            f"{shown}: takes {bands} bands and gives {channels} channels, but its metadata tells of {len(card.bands)} bands "
            f"({', '.join(card.bands)}) and {len(card.legend)} classes; mend the metadata"
        )
    if channels != len(card.legend) == 2 and not 0 < threshold < 1:
        raise CardError(f"{shown}: its metadata has seg_thresh = {threshold:g}; expected a score between 0 and 1")
    if side not in (None, card.tile):
        raise CardError(f"{shown}: takes tiles of {side} pixels, but its metadata says {card.tile}; mend the metadata")
    return OnnxModel(shown, content, card, side, mean, std, threshold)


def _content(path: Path, shown: str) -> bytes:
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is not None and size <= MOST_BYTES:
            return path.read_bytes()
    except OSError as error:
        raise CardError(f"{shown}: cannot be read ({error.strerror})") from error
    if size is None:
        raise CardError(f"{shown}: no such file; expected an ONNX file")
    raise CardError(f"{shown}: has {size / 1e9:.1f} GB; expected at most {MOST_BYTES / 1e9:.1f} GB, all in one file")


def _parsed(content: bytes, shown: str) -> ModelProto:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise OptionsError(f"{shown}: {error}; install geoseg[onnx]") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise CardError(f"{shown}: is not an ONNX file, or it is damaged; fetch it again") from error
    if not model.graph.node:
        raise CardError(f"{shown}: is not an ONNX file, or its graph is empty; fetch it again")
    return model


def _check_trust(model: ModelProto, shown: str) -> None:
    """Nothing but ONNX's own operators, and all tensors in the file itself."""
    own = {(function.domain, function.name) for function in model.functions}
    bodies = [function.node for function in model.functions]
    for node in _nodes([model.graph.node, *bodies]):
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in own:
            operator = printable(f"{node.domain}:{node.op_type}")[:80]
            raise CardError(f"{shown}: has the operator {operator}, which is not ONNX's own; export the model without custom operators")
    graphs = [model.graph, *(graph for node in _nodes([model.graph.node, *bodies]) for graph in _graphs(node))]
    for tensor in (tensor for tensors in (*map(_stored, graphs), _constants(_nodes([model.graph.node, *bodies]))) for tensor in tensors):
        if tensor.external_data or tensor.data_location == tensor.EXTERNAL:
            raise CardError(f"{shown}: keeps weights in another file ({printable(tensor.name)[:80]}); export the model as one file")


def _nodes(bodies: Iterable[Iterable[NodeProto]]) -> Iterator[NodeProto]:
    """All nodes, those inside of others too."""
    for body in bodies:
        for node in body:
            yield node
            yield from _nodes(graph.node for graph in _graphs(node))


def _graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        yield from (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs


def _stored(graph: GraphProto) -> Iterator[TensorProto]:
    """The weights of a graph."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _constants(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """The tensors that nodes have as attributes."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)


def _input(model: ModelProto, shown: str) -> tuple[int, int | None]:
    """Bands, and the side of the only tile that the graph takes or None."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise CardError(f"{shown}: takes {len(inputs)} inputs; expected one, an image")
    kind = inputs[0].type.tensor_type.elem_type
    batch, bands, height, width = _shape(inputs[0], "takes", shown)
    if kind != 1:
        raise CardError(f"{shown}: takes another data type than float32 (ONNX's number {kind}); export the model in float32")
    if batch not in (None, 1):
        raise CardError(f"{shown}: takes batches of {batch} tiles only; export the model with a batch of 1 or of any size")
    if bands is None or not 1 <= bands <= _MOST_BANDS:
        raise CardError(f"{shown}: takes {bands or 'any number of'} bands; expected 1 to {_MOST_BANDS}")
    if height != width or not (height is None or 32 <= height <= _MOST_TILE):
        raise CardError(f"{shown}: takes tiles of {height or '?'} x {width or '?'} pixels; expected squares of 32 to {_MOST_TILE}")
    return bands, height


def _output(model: ModelProto, shown: str) -> int | None:
    """Channels of the answer, or None where only computing tells."""
    if len(model.graph.output) != 1:
        raise CardError(f"{shown}: gives {len(model.graph.output)} outputs; expected one, scores of classes")
    answer = model.graph.output[0]
    return _shape(answer, "gives", shown)[1] if answer.type.tensor_type.HasField("shape") else None


def _shape(value: ValueInfoProto, verb: str, shown: str) -> tuple[int | None, int | None, int | None, int | None]:
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
    if len(dims) != 4:
        raise CardError(f"{shown}: {verb} {len(dims)} dimensions; expected 4: batch, channels, height, width")
    return dims[0], dims[1], dims[2], dims[3]


class _Facts:
    """The metadata of a file; each access is a value of the right type or a refusal."""

    def __init__(self, shown: str, model: ModelProto) -> None:
        self.shown = shown
        self.texts = {each.key: each.value for each in model.metadata_props}

    def value(self, *keys: str) -> Any:
        """What is said under the first of the keys that is there: JSON, or else as Python writes it, or else the text itself."""
        text = next((self.texts[key] for key in keys if key in self.texts), None)
        if text is None or len(text) > _MOST_LETTERS:
            return text
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
        return text

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value: Any = default if key not in self.texts else self.value(key)
        if not _is_number(value):
            raise CardError(f"{self.shown}: its metadata has {key} = {self._told(value)}; expected a number")
        return float(value)

    def numbers(self, key: str, count: int, default: float) -> tuple[float, ...]:
        """A finite number for each band."""
        values = self.value(key)
        if values is None:
            return (default,) * count
        if not isinstance(values, list | tuple) or len(values) != count or not all(_is_number(value) for value in values):
            raise CardError(f"{self.shown}: its metadata has {key} = {self._told(values)}; expected {count} numbers, one a band")
        return tuple(float(value) for value in values)

    def titles(self) -> list[str]:
        """Names of the classes in the order of the channels."""
        names = self.value("class_names", "names")
        if isinstance(names, list) and len(names) == 1:  # of one output
            names = names[0]
        try:
            titles = {int(key): printable(str(title))[:_TITLE_LETTERS] for key, title in names.items()}
        except (AttributeError, ValueError, TypeError) as error:
            raise CardError(
                f'{self.shown}: its metadata has class_names = {self._told(names)}; expected names by channel, as {{"0": "road"}}'
            ) from error
        if sorted(titles) != list(range(len(titles))) or not 1 <= len(titles) <= _MOST_CLASSES:
            raise CardError(
                f"{self.shown}: its class_names are of channels {sorted(titles)[:20]}; expected 0, 1, ... up to {_MOST_CLASSES - 1}"
            )
        return [titles[number] for number in range(len(titles))]

    @staticmethod
    def _told(value: Any) -> str:
        return "nothing" if value is None else printable(repr(value))[:80]


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < _LARGEST


def _own_card(facts: _Facts, digest: str) -> ModelCard:
    """The card that geoseg put into a file."""
    try:
        return ModelCard.model_validate_json(facts.texts[CARD_KEY]).model_copy(update={"sha256": digest})
    except ValidationError as error:
        raise CardError(f"{facts.shown}: its {CARD_KEY} is not a model card: {error.errors()[0]['msg']}") from error


def _card(
    facts: _Facts,
    model: ModelProto,
    shape: tuple[int, int | None, int | None],
    standardisation: tuple[tuple[float, ...], tuple[float, ...]],
    digest: str,
) -> ModelCard:
    """A card of what a file says in the plugin's words; what these have no word for is said to be unknown."""
    (bands, side, channels), (mean, std), shown = shape, standardisation, facts.shown
    kind = str(facts.value("model_type") or "nothing")
    if kind.capitalize() != "Segmentor":
        raise CardError(f"{shown}: its metadata has model_type = {printable(kind)[:80]}; expected Segmentor, a segmentation model")
    titles = facts.titles()
    if channels == 1 and len(titles) == 1:
        titles = ["Background", *titles]
    tile = side or facts.number("tile_size" if "tile_size" in facts.texts else "tiles_size")
    if tile != int(tile) or not 32 <= tile <= _MOST_TILE:
        raise CardError(f"{shown}: its metadata has tile_size = {tile:g}; expected 32 to {_MOST_TILE} pixels")
    percent, resolution_m = facts.number("tiles_overlap", _OVERLAP_PERCENT), facts.number("resolution") / 100
    if not 0 <= percent < 100 or resolution_m <= 0:
        raise CardError(
            f"{shown}: its metadata has tiles_overlap = {percent:g} %, resolution = {100 * resolution_m:g} cm; expected 0 to 100, above 0"
        )
    stride = math.gcd(int(tile), _STRIDE)
    name = re.sub(r"[^a-z0-9._-]+", "-", Path(shown).stem.lower()).lstrip("._-") or "onnx"
    return ModelCard(
        name=name,
        version=str(model.model_version),
        description="An ONNX file with metadata for the QGIS plugin Deepness.",
        architecture="onnx",
        options={},
        parameters=max(1, sum(math.prod(tensor.dims) for tensor in model.graph.initializer)),
        bands=_RGB if bands == len(_RGB) else tuple(f"band_{number}" for number in range(1, bands + 1)),
        scaling=Scaling(dtype="uint8", low=0, high=255, percentiles=(2, 98), mean=mean, std=std),
        resolution_m=resolution_m,
        tile=int(tile),
        overlap=min(round(tile * percent / 100 / stride), int(tile) // 2 // stride) * stride,
        stride=stride,
        legend=Legend.from_titles(name, titles),
        license="NOASSERTION",
        training_data=(),
        scores={},
        sha256=digest,
    )
