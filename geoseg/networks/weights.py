"""Pretrained weights for the encoder of a network, from a file or a hub, for any number of bands."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from geoseg.errors import CardError, OptionsError
from geoseg.networks.registry import Architecture
from geoseg.networks.stem import adapted
from geoseg.options import nearest

State = Mapping[str, Tensor]

_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin"}
_WRAPPINGS = ("state_dict", "model_state_dict", "model")
_COUNTER = "num_batches_tracked"


def is_file(source: str | Path) -> bool:
    """Whether weights are named by a file, not by their name on a hub."""
    return Path(source).suffix.lower() in _SUFFIXES


def load_encoder(network: nn.Module, architecture: Architecture, options: Mapping[str, Any], bands: int, source: str | Path) -> None:
    """Load pretrained weights into the encoder of a network; its other parts stay as they are.

    Fits state dicts of torchvision (a ResNet, a VGG, or a whole segmentation network), of timm, of the encoders of
    segmentation-models-pytorch, and of networks of this package, also inside a checkpoint. A classifier behind the encoder is left
    out. Where the number of bands is another than in training, the first convolution is :func:`geoseg.networks.stem.adapted`.

    Args:
        network: of :func:`geoseg.networks.build`.
        architecture: what it was built from.
        options: with which it was built.
        bands: of its input.
        source: a ``.safetensors`` file, a ``.pth`` file of a plain state dict, or the name of weights that a hub has: e.g.
            ``imagenet``, one of torchvision's (``IMAGENET1K_V2``), a tag of timm's (``a1_in1k``).

    Raises:
        OptionsError: if the weights cannot be read or fetched, or are not those of this encoder.
    """
    loads_itself = hasattr(network, "load_trunk")
    encoder = network if loads_itself else _encoder(network, architecture)
    name = _encoder_name(encoder, architecture, options)
    where = f"{source}: not the weights of the encoder {name!r} of {architecture.name}"
    if loads_itself:
        _load_trunk(network, _state(name, source), where)
    else:
        _load(encoder, _state(name, source), bands, where)


def load_resnet(network: nn.Module, name: str, bands: int, source: str | Path) -> None:
    """Load pretrained weights into a ResNet that has torchvision's names, or a part of one; for the rest see :func:`load_encoder`.

    Args:
        network: the ResNet.
        name: of torchvision's, e.g. ``resnet50``.
        bands: of its input.
        source: a file, or the name of weights that torchvision has.

    Raises:
        OptionsError: if the weights cannot be read or fetched, or are not those of this ResNet.
    """
    _load(network, _state(f"torchvision/{name}", source), bands, f"{source}: not the weights of a {name}")


def _state(encoder: str, source: str | Path) -> dict[str, Tensor]:
    return read_state(source) if is_file(source) else fetch_state(encoder, str(source))


def _load(encoder: nn.Module, state: State, bands: int, where: str) -> None:
    """Copy what fits; refuse what is of another encoder."""
    own = {_plain(key): value for key, value in encoder.state_dict().items()}
    theirs = _without_prefix({_joined(key): value for key, value in state.items()}, {_joined(key) for key in own})
    fitting = _fitting(own, theirs, bands, where)
    with torch.no_grad():
        for key, value in fitting.items():
            own[key].copy_(value)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict; of a ``.pth`` file only tensors are unpickled, no code is run.

    Raises:
        OptionsError: if the file is not there or holds anything but tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise OptionsError(f"{path}: no encoder weights here; expected a .safetensors or .pth file, or the name of weights on a hub")
    try:
        if path.suffix.lower() == ".safetensors":
            return safetensors.torch.load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OptionsError(
            f"{path}: not a state dict ({reason}); save one as .safetensors, or with torch.save(model.state_dict(), ...)"
        ) from error
    while isinstance(state, dict) and (inner := next((state[key] for key in _WRAPPINGS if isinstance(state.get(key), dict)), None)):
        state = inner
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise OptionsError(f"{path}: holds a {type(state).__name__} of other things, expected a state dict: tensors by name")
    return cast(dict[str, Tensor], state)


def fetch_state(encoder: str, weights: str) -> dict[str, Tensor]:
    """Fetch weights from the hub that has them, or from its cache on this machine.

    Args:
        encoder: of segmentation-models-pytorch; of timm with ``tu-`` before it; of torchvision with ``torchvision/`` before it.
        weights: their name; ``imagenet`` is there for most.

    Raises:
        OptionsError: if there are none of this name, or the hub cannot be reached.
    """
    try:
        return _fetched(encoder, weights)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OptionsError(
            f"weights {weights!r} of {encoder!r} cannot be fetched ({reason}); fetch them elsewhere and name the file instead"
        ) from error


def _fetched(encoder: str, weights: str) -> dict[str, Tensor]:
    made: nn.Module
    if encoder.startswith("torchvision/"):
        known = get_model_weights(encoder.removeprefix("torchvision/")).__members__
        name = "IMAGENET1K_V1" if weights == "imagenet" else weights
        if name not in known:
            raise OptionsError(f"torchvision has no weights {weights!r} of {encoder!r}; {nearest(weights, ('imagenet', *known))}")
        return cast(dict[str, Tensor], known[name].get_state_dict(check_hash=True))
    if encoder.startswith("tu-"):
        made = timm.create_model(encoder[3:] if weights == "imagenet" else f"{encoder[3:].partition('.')[0]}.{weights}", pretrained=True)
        return dict(made.state_dict())
    known = smp.encoders.encoders[encoder]["pretrained_settings"]
    if weights not in known:
        raise OptionsError(f"segmentation-models-pytorch has no weights {weights!r} of {encoder!r}; {nearest(weights, known)}")
    made = smp.encoders.get_encoder(encoder, weights=weights)
    return dict(made.state_dict())


def _encoder(network: nn.Module, architecture: Architecture) -> nn.Module:
    for name in ("encoder", "backbone"):
        if isinstance(module := getattr(network, name, None), nn.Module):
            return module
    raise OptionsError(f"architecture {architecture.name!r} has no encoder to load weights into; leave --encoder-weights out")


def _encoder_name(encoder: nn.Module, architecture: Architecture, options: Mapping[str, Any]) -> str:
    if architecture.kind == "smp":
        return str(options.get("encoder_name", architecture.options["encoder_name"]))
    return f"torchvision/{encoder.trunk}"


def _load_trunk(network: Any, state: State, where: str) -> None:
    """Let a network load what it makes convolutions of, fully connected layers included."""
    try:
        network.load_trunk(state)
    except CardError as error:
        raise OptionsError(f"{where}: {error}") from error


def _plain(key: str) -> str:
    """A key of an encoder as the network has it that it was made from."""
    while key.startswith("model."):
        key = key.removeprefix("model.")
    return key


def _joined(key: str) -> str:
    """The same for a flattened stage of a timm encoder (``stages_0.``) and for the network's own (``stages.0.``)."""
    return re.sub(r"_(\d+)(?=\.)", r".\1", key)


def _without_prefix(state: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The part of a state that is the encoder's, by the prefix under which most of its keys are found."""
    keys = list(own)
    prefixes = {key.removesuffix(keys[0]) for key in state if f".{key}".endswith(f".{keys[0]}")} | {""}
    prefix = max(sorted(prefixes), key=lambda each: sum(each + key in state for key in keys))
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _fitting(own: State, theirs: State, bands: int, where: str) -> dict[str, Tensor]:
    """What to copy to each tensor of the encoder; weights of a smaller, a larger or another encoder are refused."""
    missing = [key for key in own if _joined(key) not in theirs and not key.endswith(_COUNTER)]
    if missing:
        raise OptionsError(f"{where}: {len(missing)} of {len(own)} tensors are missing, {_some(missing)}; it holds {_some(theirs)}")
    found = {key: theirs[_joined(key)] for key in own if _joined(key) in theirs}
    stem = next(key for key, value in own.items() if value.ndim == 4)
    if found[stem].ndim == 4 and found[stem].shape[1] != bands == own[stem].shape[1]:
        found[stem] = adapted(found[stem].to(own[stem].dtype), bands)
    odd = [key for key, value in found.items() if value.shape != own[key].shape]
    if odd:
        shapes = f"{odd[0]} is {tuple(found[odd[0]].shape)}, expected {tuple(own[odd[0]].shape)}"
        raise OptionsError(f"{where}: {len(odd)} of {len(own)} tensors have other shapes: {shapes}")
    tops = {key.partition(".")[0] for key in own}
    more = theirs.keys() - {_joined(key) for key in own}
    larger = [key for key in more if key.partition(".")[0] in tops or "_".join(key.split(".")[:2]) in tops]
    if larger:
        raise OptionsError(f"{where}, which has no {_some(larger)}: the file is of a larger one")
    return found


def _some(keys: Iterable[str]) -> str:
    first, *rest = sorted(keys)
    return f"{first!r}{f' and {len(rest)} more' if rest else ''}"
