"""Weights in and out of files: safetensors of our own, and torchvision's checkpoints of V2 and V3.

Nothing here runs code from a file: `.safetensors` holds only tensors, `.pth` and `.pt` are read weights_only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 (the name of torch.load's error; nothing is unpickled here)

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from models.blocks import InvertedResidual, MobileNet
from pipeline.artifacts import AlpharhoError, write_bytes

State = dict[str, Tensor]

TORCHVISION_PARTS: tuple[tuple[str, str, str], ...] = (
    ("expand.conv", "conv.{j}.0", "block.{j}.0"),
    ("expand.norm", "conv.{j}.1", "block.{j}.1"),
    ("depthwise.conv", "conv.{j}.0", "block.{j}.0"),
    ("depthwise.norm", "conv.{j}.1", "block.{j}.1"),
    ("squeeze_excite.reduce", "", "block.{j}.fc1"),
    ("squeeze_excite.expand", "", "block.{j}.fc2"),
    ("project.conv", "conv.{j}", "block.{j}.0"),
    ("project.norm", "conv.{next_j}", "block.{j}.1"),
)
"""Inside a bottleneck: our name, torchvision's in V2, in V3; `j` is the position of the part in its block."""

TORCHVISION_CONV: tuple[tuple[str, str], ...] = (("conv", "0"), ("norm", "1"))
"""Inside the stem and the last convolution: our name, torchvision's."""

_COUNTER = "num_batches_tracked"  # of batch norms; used by no network here, so files may leave it out
_WRAPPERS = ("state_dict", "model")  # under which training scripts keep the tensors
_SUFFIXES = (".safetensors", ".pth", ".pt")
_UNREADABLE = (
    UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    struct.error,
)
"""What torch.load raises for a file that is cut off, is not a checkpoint, or wants to run code."""


def save_weights(
    module: MobileNet, path: Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> None:
    """Write parameters and batch norm statistics to `path` as safetensors of `dtype`, whole or not at all.

    The module's padding is added to `metadata`. AlpharhoError for a value that `dtype` cannot hold.
    """
    state = {key: value for key, value in module.state_dict().items() if not key.endswith(_COUNTER)}
    stored = {key: value.detach().cpu().to(dtype).contiguous() for key, value in state.items()}
    _check_finite(stored, f"{path} cannot be written as {str(dtype).removeprefix('torch.')}")
    write_state(path, stored, {"padding": module.padding, **metadata})


def write_state(path: Path, state: State, metadata: Mapping[str, str]) -> None:
    """Write contiguous tensors and text to `path` as safetensors, atomically; same input, same bytes.

    The library orders the metadata by chance, so the header is written again in alphabetical order.
    """
    content = save(state, metadata=dict(metadata))
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # keeps the tensors aligned
    write_bytes(path, len(header).to_bytes(8, "little") + header + content[8 + size :])


def read_metadata(path: Path) -> dict[str, str]:
    """What was noted in a `.safetensors` file; empty for other formats. AlpharhoError as `read_state`."""
    _check_is_file(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def read_state(path: Path) -> State:
    """The tensors of a `.safetensors`, `.pth` or `.pt` file by key, as stored, on the CPU.

    AlpharhoError for a file that is missing, cut off, of another format, or that holds anything but tensors.
    """
    _check_is_file(path)
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, OSError, *_UNREADABLE) as error:
        raise _damaged(path, error) from error
    return _tensors(path, content)


def load_weights(module: MobileNet, path: Path) -> None:
    """Put the weights of `path` into `module`; keys are ours or torchvision's, halves become float32.

    AlpharhoError as `read_state`, and for a padding, key, shape, dtype or value that does not fit; `module`
    is then as before.
    """
    stored, ours = read_state(path), torchvision_keys(module)
    fits = read_metadata(path).get("padding", module.padding)
    if any(key in ours for key in stored):
        fits = "torch"
    if fits != module.padding:
        raise AlpharhoError(
            f"{path} was trained with padding {fits!r}, the network has {module.padding!r}; build it with "
            f"padding={fits!r}"
        )
    theirs = {ours.get(key, key): key for key in stored}
    state = {key: stored[name] for key, name in theirs.items() if not key.endswith(_COUNTER)}
    _check_fits(module, state, theirs, path)
    module.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)


def torchvision_keys(module: MobileNet) -> dict[str, str]:
    """Torchvision's names of `module`'s tensors, in V2 and V3 spelling, to ours; the classifier's agree."""
    prefixes = dict(_torchvision_prefixes(module))
    keys = (key.rpartition(".") for key in module.state_dict())
    return {
        f"{theirs}.{leaf}": f"{prefix}.{leaf}"
        for prefix, _, leaf in keys
        for theirs in prefixes.get(prefix, ())
    }


def _torchvision_prefixes(module: MobileNet) -> Iterator[tuple[str, tuple[str, ...]]]:
    for i, block in module.features.named_children():
        if not isinstance(block, InvertedResidual):
            yield from (
                (f"features.{i}.{our}", (f"features.{i}.{their}",)) for our, their in TORCHVISION_CONV
            )
            continue
        positions = {part: j for j, (part, _) in enumerate(block.named_children())}
        for our, v2, v3 in TORCHVISION_PARTS:
            j = positions.get(our.partition(".")[0])
            if j is not None:
                theirs = (name.format(j=j, next_j=j + 1) for name in (v2, v3) if name)
                yield f"features.{i}.{our}", tuple(f"features.{i}.{name}" for name in theirs)


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise AlpharhoError(f"no weights file at {path}")
    if path.suffix not in _SUFFIXES:
        raise AlpharhoError(
            f"{path} is no weights file that is read here; supported are {', '.join(_SUFFIXES)}"
        )


def _damaged(path: Path, error: BaseException) -> AlpharhoError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return AlpharhoError(
        f"{path} is damaged or holds more than tensors ({reason[:160]}); get it again or save a state_dict"
    )


def _tensors(path: Path, content: object) -> State:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise AlpharhoError(f"{path} holds no tensors by name; save a module's state_dict")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise AlpharhoError(
                f"{path}: {key!r} is a {type(value).__name__}, not a tensor; save a state_dict"
            )
    return content


def _check_fits(module: MobileNet, state: State, theirs: Mapping[str, str], path: Path) -> None:
    """AlpharhoError for the first key that is missing, wrongly shaped, of no float type, or unexpected."""
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith(_COUNTER)}
    _check_classes(module, state, path)
    for key, value in wanted.items():
        need = f"the network's {key} has shape {_shape(value)}"
        if key not in state:
            raise AlpharhoError(f"{path} has no {key}, but {need}")
        if state[key].shape != value.shape:
            raise AlpharhoError(f"{path}: {theirs[key]} has shape {_shape(state[key])}, but {need}")
        if not state[key].is_floating_point():
            raise AlpharhoError(f"{path}: {theirs[key]} is {state[key].dtype}, but weights are floats")
    unexpected = next((theirs[key] for key in state if key not in wanted), None)
    if unexpected is not None:
        raise AlpharhoError(f"{path} has {unexpected}, for which the network has no place")
    _check_finite({theirs[key]: value for key, value in state.items()}, f"{path} is damaged")


def _check_classes(module: MobileNet, state: State, path: Path) -> None:
    """The last key of a state is the bias of the logits; only its length differs between class counts."""
    key, bias = list(module.state_dict().items())[-1]
    if key in state and state[key].ndim == 1 and len(state[key]) != len(bias):
        raise AlpharhoError(
            f"{path} has {len(state[key])} classes ({key}), the network has {len(bias)}; build it with "
            f"num_classes={len(state[key])}"
        )


def _check_finite(state: State, finding: str) -> None:
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise AlpharhoError(f"{finding}: {key} has values that are not finite")


def _shape(value: Tensor) -> str:
    return "x".join(str(size) for size in value.shape) or "scalar"
