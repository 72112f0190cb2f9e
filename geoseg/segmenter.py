"""A card and its weights on a device, answering batches."""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import platform
import sys
import time
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import safetensors
import safetensors.torch
import torch

from geoseg import deepness, networks
from geoseg.card import ModelCard
from geoseg.errors import CardError, OptionsError
from geoseg.networks import maskrcnn
from geoseg.networks.fold import fold_batch_norms
from geoseg.networks.graph import OnnxNetwork, can_use_cuda
from geoseg.scene import Stretch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Augmentation = Literal["none", "flips", "d4"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LARGEST_BATCH = 32
_GIVE_BACK_EVERY_S = 10.0
_given_back_at = -math.inf


class Segmenter:
    """Answers batches of native pixels with logits.

    Attributes:
        card: the model's facts.
        device: where the network lives.
        precision: ``fp32``, ``bf16`` or ``fp16``, resolved.
        batch: tiles of one forward pass; every pass has exactly this many, the last one padded. 1 on a CPU, where
            larger batches are slower; on a GPU what fits, found by ``prepare`` and halved when memory runs out.
    """

    def __init__(
        self,
        card: ModelCard,
        network: torch.nn.Module,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        tta: Augmentation = "none",
        compile: bool = False,  # noqa: A002 the word of torch
    ) -> None:
        """Put a network on a device.

        Args:
            card: its facts.
            network: ``(N, B, H, W)`` float to ``(N, K, H, W)`` logits.
            device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            precision: of the convolutions; ``auto`` is bf16 where the hardware multiplies it fast, else fp32.
            tta: test-time augmentation: the mean logits over ``flips`` (4) or the whole square group ``d4`` (8).
            compile: use ``torch.compile``.

        Raises:
            OptionsError: if the device is not there, or an option is unknown.
        """
        for name, value, known in (("precision", precision, get_args(Precision)), ("tta", tta, get_args(Augmentation))):
            if value not in known:
                raise OptionsError(f"{name} {value!r} is unknown; choose one of {', '.join(known)}")
        self.card = card
        self.device = _device(device)
        self.precision = fastest(self.device) if precision == "auto" else precision
        self.batch = 1
        self._views = {"none": _IDENTITY, "flips": _FLIPS, "d4": _D4}[tta]
        if self.device.type == "cpu":
            tune_malloc()
        network = network.eval().to(self.device).to(memory_format=torch.channels_last)
        self._network = torch.compile(network) if compile else network

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        tta: Augmentation = "none",
        compile: bool = False,  # noqa: A002 the word of torch
    ) -> Self:
        """Build the network that a model folder describes and load its weights (safetensors only, hash checked); or an ONNX file.

        An ONNX file is computed by onnxruntime, in fp32; see ``geoseg.deepness`` for what it must say of itself, and what is trusted.

        Raises:
            CardError: if the folder is no model, or weights and card do not fit together.
            OptionsError: if an ONNX file cannot be computed as wanted.
        """
        if deepness.is_onnx(model):
            return cls._of_onnx(deepness.read(model), device=device, precision=precision, tta=tta, compile=compile)
        card, network = cls._read(model)
        return cls(card, network, device=device, precision=precision, tta=tta, compile=compile)

    @staticmethod
    def _read(model: str | Path) -> tuple[ModelCard, torch.nn.Module]:
        """The card and the network of a model folder."""
        return load_network(model)

    @classmethod
    def _of_onnx(
        cls,
        model: deepness.OnnxModel,
        *,
        device: str,
        precision: Precision,
        tta: Augmentation,
        compile: bool,  # noqa: A002 the word of torch
    ) -> Self:
        if precision not in ("auto", "fp32") or compile:
            raise OptionsError(f"{model.path}: an ONNX file is computed by onnxruntime in fp32; leave --precision and --compile away")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() and can_use_cuda() else "cpu"
        place = _device(device)
        if place.type != "cpu" and not (place.type == "cuda" and can_use_cuda()):
            raise OptionsError(f"{model.path}: onnxruntime here does not compute on {device}; use --device cpu, or install onnxruntime-gpu")
        (scale, shift), card = model.feed, model.card
        network = OnnxNetwork(
            model.content,
            where=model.path,
            bands=len(card.bands),
            classes=len(card.legend),
            tile=card.tile,
            side=model.side,
            scale=scale,
            shift=shift,
            threshold=model.threshold,
            device=place,
        )
        return cls(card, network, device=device, precision="fp32", tta=tta)

    def prepare(self, shape: tuple[int, int], largest: int | None = None) -> None:
        """Find the batch that fits the device's memory, and warm up: the first pass is the one that chooses and compiles kernels.

        Memory decides the batch, never the tile. On a CPU the batch stays 1 unless ``largest`` asks for more.

        Args:
            shape: height and width of the tiles to come.
            largest: upper bound of the batch; None for the device's own choice.
        """
        if self.device.type != "cuda":
            self.batch = largest or 1
            self.logits(np.zeros((self.batch, len(self.card.bands), *shape), np.uint8), np.ones((self.batch, *shape), bool))
            return
        size, largest = 1, largest or _LARGEST_BATCH
        while size <= largest:
            pixels = torch.zeros((size, len(self.card.bands), *shape), device=self.device)
            try:
                self._forward(pixels.contiguous(memory_format=torch.channels_last))
                torch.cuda.synchronize(self.device)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            self.batch = size
            size *= 2

    def logits(self, pixels: np.ndarray, valid: np.ndarray, stretch: Stretch | None = None) -> torch.Tensor:
        """Logits of a batch.

        Pixels that are not valid are replaced by the training mean, so that whatever a file stores there cannot matter.
        When the device runs out of memory the batch is halved, for good, and the same tiles are asked again.

        Args:
            pixels: ``(N, B, H, W)`` in the scene's own dtype; fastest when its memory is ordered N, H, W, B.
            valid: ``(N, H, W)`` bool.
            stretch: the scene's own range per band where it is not of the card's dtype.

        Returns:
            ``(N, K, H, W)`` float32, bfloat16 or float16 on the device.

        Raises:
            torch.OutOfMemoryError: if not even one tile fits.
        """
        scaled = self._scale(pixels, valid, stretch)
        while True:
            try:
                return (
                    torch.cat([self._padded(part) for part in torch.split(scaled, self.batch)])
                    if len(scaled) > self.batch
                    else self._padded(scaled)
                )
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.batch //= 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def levels(self, pixels: np.ndarray, stretch: Stretch | None = None) -> torch.Tensor:
        """Native pixels in the range that the card names: 0 is its low end, 1 its high end.

        Args:
            pixels: ``(B, H, W)`` in the scene's own dtype.
            stretch: the scene's own range per band where it is not of the card's dtype.

        Returns:
            ``(B, H, W)`` float32 on the device, 0 to 1.
        """
        low, high = self._range(stretch)
        x = torch.from_numpy(pixels.astype(np.float32)).to(self.device)
        return ((x - self._axis(low)[0]) / self._axis(high - low)[0]).clamp_(0, 1)

    def _padded(self, part: torch.Tensor) -> torch.Tensor:
        """Answer at most a batch with one forward pass of constant shape."""
        missing = self.batch - len(part)
        if not missing:
            return self._forward(part)
        whole = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]).contiguous(memory_format=torch.channels_last)
        return self._forward(whole)[: len(part)]

    def _forward(self, scaled: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(self.device.type, _DTYPES[self.precision], enabled=self.precision != "fp32"):
            if len(self._views) == 1:
                answer: torch.Tensor = self._network(scaled)
                return answer
            total = torch.zeros((), device=self.device)
            for turns, flip in self._views:
                seen = torch.rot90(scaled, turns, (2, 3))
                answer = self._network((seen.flip(3) if flip else seen).contiguous(memory_format=torch.channels_last))
                total = total + torch.rot90(answer.flip(3) if flip else answer, -turns, (2, 3))
            return total / len(self._views)

    def _scale(self, pixels: np.ndarray, valid: np.ndarray, stretch: Stretch | None) -> torch.Tensor:
        """Native pixels to network input on the device, ``(N, B, H, W)`` float32, channels last."""
        facts = self.card.scaling
        low, high = self._range(stretch)
        mean, std = torch.tensor(facts.mean), torch.tensor(facts.std)
        if pixels.dtype.byteorder == ">" or pixels.dtype not in (np.uint8, np.int16, np.int32, np.float32):
            pixels = pixels.astype(np.float32)
        with torch.inference_mode():
            x = self._send(torch.from_numpy(pixels)).to(torch.float32, memory_format=torch.channels_last)
            known = self._send(torch.from_numpy(valid))[:, None]
            if stretch is None and pixels.dtype == np.uint8 and (facts.low, facts.high) == (0, 255):
                x = torch.addcmul(self._axis(-mean / std), x, self._axis(1 / (255 * std)))
            else:
                x = (x - self._axis(low)) / self._axis(high - low)
                x = (x.clamp_(0, 1) - self._axis(mean)) / self._axis(std)
            return x if valid.all() else torch.where(known, x, torch.zeros((), device=self.device))

    def _range(self, stretch: Stretch | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Values that become 0 and 1, each ``(B,)`` float32."""
        facts = self.card.scaling
        low = torch.tensor(stretch.low if stretch else [facts.low] * len(facts.mean), dtype=torch.float32)
        high = torch.tensor(stretch.high if stretch else [facts.high] * len(facts.mean), dtype=torch.float32)
        return low, high

    def _axis(self, values: torch.Tensor) -> torch.Tensor:
        return values.view(1, -1, 1, 1).to(self.device, non_blocking=True)

    def _send(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor.to(self.device)


def load_network(model: str | Path) -> tuple[ModelCard, torch.nn.Module]:
    """The card of a model folder, and its network: weights loaded, batch norms folded, float32, on the CPU.

    Raises:
        CardError: if the folder is no model, or weights and card do not fit together.
    """
    card, weights = ModelCard.read(model)
    if card.architecture in maskrcnn.names():
        raise CardError(f"{model}: {card.architecture} answers with instances, not with classes; use it with geoseg predict")
    card.check(weights)
    network = networks.build(card.architecture, bands=len(card.bands), classes=len(card.legend), **card.options)
    load_weights(network, card, weights)
    return card, fold_batch_norms(network.eval(), len(card.bands))


def load_weights(network: torch.nn.Module, card: ModelCard, path: Path) -> None:
    """Load the weights of a model folder, of half precision, into its network of float32.

    Raises:
        CardError: if weights and card do not fit together.
    """
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise CardError(f"{path}: not the weights of {card.architecture} {card.options}: {str(error).splitlines()[0]}") from error


_IDENTITY = [(0, False)]
_FLIPS = [(0, False), (0, True), (2, False), (2, True)]
_D4 = [(turns, flip) for turns in range(4) for flip in (False, True)]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionsError(f"device {name!r} is not there ({str(error).splitlines()[0]}); use --device cpu or auto") from error
    return device


def fastest(device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision in which a device multiplies fastest.

    oneDNN takes bf16 on every x86 processor with AVX-512 and makes up for what that lacks: without the instructions for it
    (AVX512-BF16, AMX) a convolution takes three times as long as in fp32.
    """
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if fast else "fp32"


def tune_malloc() -> bool:
    """Let glibc keep large freed blocks instead of giving them back to the system after every layer.

    By default each activation above 32 MB (and in any thread but the first, above 64 MB in all) is mapped afresh and its
    pages are cleared again, which costs a CPU forward pass a third of its time. So: one arena for all threads, and high
    thresholds. Returns whether the allocator took the advice.
    """
    libc = _glibc()
    if libc is None:
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8
    advice = {mmap_threshold: 1 << 30, trim_threshold: (1 << 31) - 1, arena_max: 1}
    taken = [libc.mallopt(parameter, value) for parameter, value in advice.items()]
    return all(taken)


def give_back_memory() -> None:
    """Return freed memory to the system, so that a process that works for long does not grow: see ``tune_malloc``.

    Not more often than every ten seconds: what is given back has to be cleared before it is used again, which takes as long as a tile.
    """
    global _given_back_at
    now = time.monotonic()
    if now - _given_back_at >= _GIVE_BACK_EVERY_S and (libc := _glibc()):
        libc.malloc_trim(0)
        _given_back_at = now


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    return libc if hasattr(libc, "mallopt") else None
