"""An ONNX graph as a network, and a network as an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from geoseg.errors import CardError, OptionsError, TilingError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

OPSET = 18
"""Version of ONNX's operators in graphs that are written here: onnxruntime 1.14 (2023) and later compute them."""

_IR_VERSION = 8  # of the file format, as old as the operators
_SLACK = 1e-4  # of scores beyond 0 and 1
_TOLD = 200  # letters of other packages' messages


class OnnxNetwork(nn.Module):
    """Answers with an ONNX graph, computed by onnxruntime in fp32, one tile after the other.

    Tiles smaller than the only size that the graph takes are filled up at the right and at the bottom with 0, the training mean
    of scaled pixels. A tile gets the same answer, to the bit, whatever was asked before.

    What the graph gives is taken for scores if all of it lies between 0 and 1 for a tile of noise, else for logits. Of scores p the
    logits are log p, so that their softmax gives the scores back; of the score of a single class, with threshold t, they are 0 and
    logit p - logit t.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(
        self,
        content: bytes,
        *,
        where: str,
        bands: int,
        classes: int,
        tile: int,
        side: int | None = None,
        scale: Sequence[float] = (1.0,),
        shift: Sequence[float] = (0.0,),
        threshold: float = 0.5,
        device: torch.device | None = None,
    ) -> None:
        """Make onnxruntime ready, and ask once.

        Args:
            content: an ONNX file that was judged (``geoseg.deepness.read``); nothing beside it is read.
            where: its name, for messages.
            bands: B of the input (N, B, H, W).
            classes: K of the answer (N, K, H, W); the graph itself may give a single channel where K is 2.
            tile: side in pixels of the tile that is asked at once.
            side: of the only tile that the graph takes, pixels; None if it takes any.
            scale: per band, what scaled pixels are multiplied by before the graph gets them.
            shift: per band, what is added then.
            threshold: of the score of a single class, between 0 and 1.
            device: where to compute; None for the CPU.

        Raises:
            CardError: if onnxruntime cannot compute the graph, or the answer is not what is expected.
            OptionsError: if the package onnxruntime is missing, or cannot use the device.
        """
        super().__init__()
        self._where, self._side, self._classes = where, side, classes
        self._session = _session(content, where, device or torch.device("cpu"))
        self._input = self._session.get_inputs()[0].name
        self.register_buffer("_scale", torch.tensor(scale, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("_shift", torch.tensor(shift, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        answer = self._computed(torch.rand(1, bands, tile, tile, generator=torch.Generator().manual_seed(0)))
        self._are_scores = bool(((answer >= -_SLACK) & (answer <= 1 + _SLACK)).all())
        single = answer.shape[1] != classes
        self._least = math.log(threshold / (1 - threshold)) if single else 0.0
        if single and not self._are_scores:
            self._refuse_range(answer)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (N, K, H, W) float32 of scaled pixels (N, B, H, W) float32.

        Raises:
            TilingError: if the tile is larger than the only one the graph takes.
            CardError: if the graph cannot be computed for tiles of this size, or its scores leave 0 to 1.
        """
        return torch.cat([self._logits(tile[None]) for tile in pixels])

    def _logits(self, tile: Tensor) -> Tensor:
        height, width = tile.shape[2:]
        side = self._side or max(height, width)
        if max(height, width) > side:
            raise TilingError(f"{self._where}: takes tiles of {side} pixels only, not of {max(height, width)}; leave --tile away")
        if self._side:
            tile = nn.functional.pad(tile, (0, side - width, 0, side - height))
        answer = self._computed(tile * self._scale + self._shift).to(tile.device)[:, :, :height, :width]
        if not self._are_scores:
            return answer
        if bool((answer < -_SLACK).any() | (answer > 1 + _SLACK).any()):
            self._refuse_range(answer)
        if answer.shape[1] == self._classes:
            return answer.clamp_min(torch.finfo(torch.float32).tiny).log()
        return torch.cat([torch.zeros_like(answer), torch.logit(answer, eps=1e-7) - self._least], 1)

    def _computed(self, tile: Tensor) -> Tensor:
        """What the graph gives for a tile (1, B, H, W): (1, K or 1, H, W) float32 on the CPU."""
        from onnxruntime.capi import onnxruntime_pybind11_state as failures

        try:
            (values,) = self._session.run(None, {self._input: tile.cpu().contiguous().numpy()})
        except (failures.Fail, failures.InvalidArgument, failures.RuntimeException, failures.NotImplemented) as error:
            raise CardError(f"{self._where}: cannot be computed for a tile of {tuple(tile.shape)}: {_line(error)}") from error
        answer = torch.from_numpy(values)
        expected = (1, self._classes, *tile.shape[2:])
        allowed = [expected, (1, 1, *tile.shape[2:])] if self._classes == 2 else [expected]
        if answer.dtype != torch.float32 or tuple(answer.shape) not in allowed:
            given, got = tuple(tile.shape), f"{tuple(answer.shape)} {answer.dtype}"
            raise CardError(f"{self._where}: answers a tile of {given} with {got}; expected {expected} float32, a score a class and pixel")
        return answer

    def _refuse_range(self, answer: Tensor) -> None:
        low, high = (value.item() for value in torch.aminmax(answer))
        raise CardError(f"{self._where}: gives scores of {low:.3g} to {high:.3g}, expected 0 to 1; end its graph with a softmax or sigmoid")


def can_use_cuda() -> bool:
    """Whether onnxruntime is there and computes on CUDA devices."""
    return "CUDAExecutionProvider" in _runtime("cuda").get_available_providers()


def to_onnx(network: nn.Module, *, low: float, high: float, mean: Sequence[float], std: Sequence[float], tile: int) -> ModelProto:
    """Write a network as an ONNX graph, from pixels divided by 255 to scores.

    The graph scales its input as ``geoseg.card.Scaling`` says, and ends with a softmax. It takes one size of tiles, in batches of any
    size, and says nothing of the machine that it was made on.

    Args:
        network: scaled pixels (N, B, H, W) to logits (N, K, H, W), float32, on the CPU.
        low: pixel that becomes 0.
        high: pixel that becomes 1.
        mean: per band, of values in 0..1.
        std: per band, of values in 0..1.
        tile: H and W in pixels.

    Returns:
        A model with the input ``pixels`` (N, B, H, W) and the output ``scores`` (N, K, H, W), both float32, without metadata.

    Raises:
        CardError: if torch cannot export the network.
        OptionsError: if a package is missing.
    """
    try:
        import onnxscript  # noqa: F401 torch exports with it
    except ImportError as error:
        raise OptionsError(f"export: {error}; install geoseg[onnx]") from error
    whole = _Scored(network, low, high, mean, std).eval()
    pixels = torch.rand(2, len(mean), tile, tile, generator=torch.Generator().manual_seed(0))
    batch = {0: torch.export.Dim("batch")}
    names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["scores"]}
    try:
        program = torch.onnx.export(whole, (pixels,), dynamo=True, opset_version=OPSET, dynamic_shapes=(batch,), verbose=False, **names)
    except torch.onnx.OnnxExporterError as error:
        raise CardError(f"{type(network).__name__} cannot be written as an ONNX graph: {_line(error)}") from error
    assert program is not None
    model: ModelProto = program.model_proto
    model.ir_version = _IR_VERSION
    model.producer_name, model.producer_version = "geoseg", ""
    del model.metadata_props[:]
    _bare(model.graph)
    return model


class _Scored(nn.Module):
    """Pixels divided by 255 (N, B, H, W) to scores (N, K, H, W) that add to 1."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, low: float, high: float, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network, self.low, self.high = network, low, high
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        share = ((255 * pixels - self.low) / (self.high - self.low)).clamp(0, 1)
        logits: Tensor = self.network((share - self.mean) / self.std)
        return logits.softmax(1)


def _bare(graph: GraphProto) -> None:
    """Take away where in which source file each node came from: nobody needs it, and it names folders of a machine."""
    parts = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for part in (graph, *(each for several in parts for each in several)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
            _bare(inner)


def _session(content: bytes, where: str, device: torch.device) -> Any:
    """Onnxruntime ready to compute a graph: with as many threads as torch has, none of which waits busily.

    Raises:
        CardError: if it does not take the graph.
        OptionsError: if the package is missing, or cannot use the device.
    """
    runtime = _runtime(where)
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        wanted.insert(0, ("CUDAExecutionProvider", {"device_id": str(device.index or 0), "use_tf32": "0"}))
    try:
        session = runtime.InferenceSession(content, options, providers=wanted)
    except (failures.Fail, failures.InvalidGraph, failures.InvalidProtobuf, failures.InvalidArgument, failures.NotImplemented) as error:
        raise CardError(f"{where}: onnxruntime {runtime.__version__} does not take the graph: {_line(error)}") from error
    except failures.RuntimeException as error:
        raise CardError(f"{where}: onnxruntime {runtime.__version__} cannot prepare the graph: {_line(error)}") from error
    if device.type == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise OptionsError(f"{where}: onnxruntime cannot use {device}, perhaps for want of a library; use --device cpu")
    return session


def _runtime(where: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise OptionsError(f"{where}: {error}; install geoseg[onnx]") from error
    return onnxruntime


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:_TOLD]
