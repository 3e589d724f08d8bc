"""Reads and writes ResNeXt weights in the formats that exist: torchvision and timm, mmpretrain, and two older ones.

A format is a way to rename: from a key of `ResNeXt.state_dict()`, which are torchvision's, to that of the format.

    torchvision  layer1.0.conv2.weight, fc.weight; timm's ResNets and ResNeXts are the same, variants included
    mmpretrain   backbone.layer1.0.conv2.weight, head.fc.weight, and names of its own for the variants
    cadene       features.4.0.0.0.0.3.weight, last_linear.weight: Cadene/pretrained-models.pytorch, ported from Lua
    prlz77       stage_1.stage_1_bottleneck_0.conv_conv.weight, classifier.weight: prlz77/ResNeXt.pytorch, for CIFAR
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

StateDict = Mapping[str, Tensor]

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(conv[123]|bn[123]|downsample\.[01])\.(\w+)")
_CADENE_BLOCK = {
    "conv1": "0.0.0",
    "bn1": "0.0.1",
    "conv2": "0.0.3",
    "bn2": "0.0.4",
    "conv3": "0.1",
    "bn3": "0.2",
    "downsample.0": "1.0",
    "downsample.1": "1.1",
}
_CADENE_REST = {"conv1": "features.0", "bn1": "features.1", "fc": "last_linear"}
_PRLZ77_BLOCK = {
    "conv1": "conv_reduce",
    "bn1": "bn_reduce",
    "conv2": "conv_conv",
    "bn2": "bn",
    "conv3": "conv_expand",
    "bn3": "bn_expand",
    "downsample.0": "shortcut.shortcut_conv",
    "downsample.1": "shortcut.shortcut_bn",
}
_PRLZ77_REST = {"conv1": "conv_1_3x3", "bn1": "bn_1", "fc": "classifier"}


Modules = Mapping[str, nn.Module]  # of the model, by name: some names depend on what they belong to


def _to_mmpretrain(key: str, modules: Modules) -> str:
    if key.startswith("fc."):
        return f"head.{key}"
    owner, _, tensor = key.rpartition(".")
    path = owner.split(".")
    norm = "gn" if isinstance(modules.get(owner), nn.GroupNorm) else "bn"
    if path[0] in ("conv1", "bn1") and isinstance(
        modules.get("conv1"), nn.Sequential
    ):  # deep stem: conv, norm, ReLU, ...
        place = int(path[1]) if path[0] == "conv1" else 7
        path = ["stem", str(place // 3), "conv" if place % 3 == 0 else norm]
    elif path[-1].startswith("bn"):
        path[-1] = norm + path[-1].removeprefix("bn")
    elif path[-2:-1] == ["se"]:
        path[-2:] = ["se_layer", path[-1].replace("fc", "conv"), "conv"]
    elif path[-2:-1] == ["downsample"] and type(modules[".".join(path[:-1]) + ".0"]) is nn.Identity:
        path[-1] = str(int(path[-1]) - 1)  # where nothing is pooled, mmpretrain has no module
    return ".".join(["backbone", *path, tensor])


def _to_cadene(key: str, modules: Modules) -> str:
    if block := _BLOCK.fullmatch(key):
        return f"features.{3 + int(block[1])}.{block[2]}.0.{_CADENE_BLOCK[block[3]]}.{block[4]}"
    return _rename_first(key, _CADENE_REST)


def _to_prlz77(key: str, modules: Modules) -> str:
    if block := _BLOCK.fullmatch(key):
        return f"stage_{block[1]}.stage_{block[1]}_bottleneck_{block[2]}.{_PRLZ77_BLOCK[block[3]]}.{block[4]}"
    return _rename_first(key, _PRLZ77_REST)


def _rename_first(key: str, names: dict[str, str]) -> str:
    first, dot, rest = key.partition(".")
    return names.get(first, first) + dot + rest


FORMATS: dict[str, Callable[[str, Modules], str]] = {
    "torchvision": lambda key, modules: key,
    "mmpretrain": _to_mmpretrain,
    "cadene": _to_cadene,
    "prlz77": _to_prlz77,
}
_PLAIN_ONLY = ("cadene", "prlz77")
_VARIANT = re.compile(r"conv1\.\d|.*\.(se|downsample\.2)\.")  # deep stem, squeeze-and-excitation, avg_down
_OTHER_NAMES = {"timm": "torchvision", "mmcls": "mmpretrain"}

_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
_EMA_WRAPPERS = ("ema_state_dict", "state_dict_ema", "model_ema", "ema", "average")
_EMA_COUNTERS = ("steps", "n_averaged")  # of mmengine and of torch.optim.swa_utils.AveragedModel, beside the weights
_PREFIXES = ("module.", "_orig_mod.")  # nn.DataParallel, torch.compile


def load_weights(
    model: nn.Module, weights: str | os.PathLike | Mapping[str, Any], source: str = "auto", ema: bool = False
) -> str:
    """Loads weights of any known format into a model; everything is checked before anything is written.

    Files are read as data only (`torch.load(weights_only=True)`, or safetensors), and those of `torch.save` must have
    the checksums that they were written with. Known wrappers around the weights
    ("state_dict", "model", ...) and prefixes ("module.", "_orig_mod.") are taken off. Files from before PyTorch 1.0
    have no num_batches_tracked; the model's own stay then. For a model without a classifier (`out_indices`) that of the
    weights is passed over. Values are copied to the model's dtype and device.

    Args:
        model: a ResNeXt, or any module with torchvision's names, such as torchvision's own.
        weights: a file, or what it holds: a state_dict, wrapped or not.
        source: "torchvision" (or "timm"), "mmpretrain" (or "mmcls"), "cadene", "prlz77", or "auto" for the one that
            fits.
        ema: take the averaged weights that a checkpoint holds beside the trained ones.

    Returns:
        The format that was read.

    Raises:
        ValueError: unknown source; a file that cannot be read, or without weights; keys or shapes that do not fit, by
            name.
        ImportError: a .safetensors file, and the package safetensors is not installed.
        pickle.UnpicklingError: a file that holds more than data.

    """
    if source != "auto" and _OTHER_NAMES.get(source, source) not in FORMATS:
        names = ", ".join(repr(name) for name in ("auto", *FORMATS, *_OTHER_NAMES))
        raise ValueError(f"expected source to be one of {names}, got {source!r}")
    what = "the state_dict" if isinstance(weights, Mapping) else str(weights)
    given = _unwrap(weights if isinstance(weights, Mapping) else _read(Path(weights)), ema, what)
    own = model.state_dict()
    formats = [name for name in FORMATS if name not in _PLAIN_ONLY or not any(map(_VARIANT.match, own))]
    tried = formats if source == "auto" else [_OTHER_NAMES.get(source, source)]
    names = {name: _names(model, own, name) for name in tried}
    if not any(key.startswith("fc.") for key in own):
        classifiers = {FORMATS[name](f"fc.{part}", {}) for name in tried for part in ("weight", "bias")}
        given = {key: value for key, value in given.items() if key not in classifiers}
    fits = {name: _misfits(own, given, names[name]) for name in tried}
    best = min(tried, key=lambda name: sum(map(len, fits[name])))
    missing, unexpected, shapes = fits[best]
    if missing or unexpected or shapes:
        parts = [
            f"{len(keys)} {kind}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        closest = f", the closest of {', '.join(tried)}" if len(tried) > 1 else ""
        raise ValueError(f"{what} does not fit {type(model).__name__} as {best} weights{closest}: {'; '.join(parts)}")
    model.load_state_dict({key: given.get(names[best][key], value) for key, value in own.items()})
    return best


def export_weights(model: nn.Module, target: str) -> dict[str, Tensor]:
    """A model's state_dict in another format, for `torch.save` or `safetensors.torch.save_file`.

    Args:
        model: a ResNeXt, or any module with torchvision's names.
        target: "torchvision" (or "timm"), "mmpretrain" (or "mmcls"), "cadene" or "prlz77".

    Returns:
        Names and tensors, which share memory with the model's.

    Raises:
        ValueError: unknown target, or a network that the target has no names for.

    """
    target = _OTHER_NAMES.get(target, target)
    if target not in FORMATS:
        names = ", ".join(repr(name) for name in (*FORMATS, *_OTHER_NAMES))
        raise ValueError(f"expected target to be one of {names}, got {target!r}")
    own = model.state_dict()
    names = _names(model, own, target)
    return {names[key]: value for key, value in own.items()}


def _names(model: nn.Module, own: StateDict, format: str) -> dict[str, str]:
    """What the format calls each of the model's keys."""
    variant = next(filter(_VARIANT.match, own), None) if format in _PLAIN_ONLY else None
    if variant:
        raise ValueError(f"{format} has names for plain networks only, and this {type(model).__name__} has {variant}")
    modules = dict(model.named_modules())
    return {key: FORMATS[format](key, modules) for key in own}


def _read_torch(path: Path) -> Any:
    """What `torch.save` wrote, once its checksums are found right, which `torch.load` does not look at."""
    if zipfile.is_zipfile(path):  # since PyTorch 1.6; older files have no checksums
        with zipfile.ZipFile(path) as archive:
            written = any(part.CRC for part in archive.infolist())  # they can be switched off
            if written and (broken := archive.testzip()):
                raise ValueError(f"the checksum of {broken} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f"reading {path} needs the package safetensors: pip install safetensors") from error
        reader = load_file
    else:
        reader = _read_torch
    try:
        content = reader(path)
    except (OSError, MemoryError, pickle.UnpicklingError):
        raise
    except Exception as error:  # what a damaged file makes the two libraries raise is not specified
        raise ValueError(f"{path} is damaged, or no file of weights: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"expected {path} to hold a dict of tensors, got {type(content).__name__}")
    return content


def _unwrap(content: Mapping[str, Any], ema: bool, what: str) -> dict[str, Tensor]:
    """The tensors in a checkpoint, under names without prefixes."""
    wrappers = {name: content[name] for name in (*_WRAPPERS, *_EMA_WRAPPERS) if isinstance(content.get(name), Mapping)}
    wanted = [name for name in wrappers if (name in _EMA_WRAPPERS) == ema]
    if wanted:
        content = wrappers[wanted[0]]
    elif ema:
        raise ValueError(f"{what} holds no averaged weights: expected one of {', '.join(_EMA_WRAPPERS)}")
    elif wrappers:
        raise ValueError(f"{what} holds averaged weights only ({next(iter(wrappers))}): pass ema=True to take them")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if ema:
        tensors = {key: value for key, value in tensors.items() if key not in _EMA_COUNTERS}
    if not tensors:
        raise ValueError(f"{what} holds no tensors, only {', '.join(map(str, list(content)[:5])) or 'nothing'}")
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _misfits(own: StateDict, given: StateDict, names: dict[str, str]) -> tuple[list[str], list[str], list[str]]:
    """Keys that are missing, unexpected, or of another shape, in the format's names."""
    expected = {names[key]: value for key, value in own.items()}
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in expected]
    shapes = [
        f"{key} (expected {list(expected[key].shape)}, got {list(value.shape)})"
        for key, value in given.items()
        if key in expected and expected[key].shape != value.shape
    ]
    return missing, unexpected, shapes
