"""Weights in and out of files: safetensors of our own, and the checkpoints that `models.checkpoints` knows.

Nothing here runs code from a file: `.safetensors` holds only tensors, the others are read weights_only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 (the name of torch.load's error; nothing is unpickled here)

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.blocks import MobileNet
from models.checkpoints import SUPPORTED, Recognised, Source, State, our_keys, recognise, with_norm_eps
from pipeline.artifacts import AlpharhoError, write_bytes

_COUNTER = "num_batches_tracked"  # of batch norms; used by no network here, so files may leave it out
_WRAPPERS = ("state_dict", "model")  # under which training scripts keep the tensors
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
_SHOWN = 3  # keys that an error names, of those that do not fit
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


def read_card(path: Path) -> dict[str, str]:
    """The rows of the card that lies beside a weights file as `.md`, `| key | value |`; empty without one."""
    card = path.with_suffix(".md")
    if not card.is_file():
        return {}
    rows = (line.strip().strip("|").split("|", 1) for line in card.read_text(encoding="utf-8").splitlines())
    return {row[0].strip(): row[1].strip() for row in rows if len(row) == 2 and row[0].strip(" -")}


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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A weights file that has been read, and what is known of it. `padding` None means nobody says."""

    path: Path
    recognised: Recognised
    padding: str | None

    @property
    def source(self) -> Source:
        """Who trained it, and on what input."""
        return self.recognised.source


def read_checkpoint(path: Path, named: str | None = None) -> Checkpoint:
    """Read `path` and recognise whose it is; `named` is a key of `models.checkpoints.SOURCES` or None.

    AlpharhoError as `read_state` and `recognise`.
    """
    recognised = recognise(read_state(path), path, named)
    return Checkpoint(path, recognised, recognised.source.padding or read_metadata(path).get("padding"))


def fill(module: MobileNet, checkpoint: Checkpoint) -> None:
    """Put the weights of a checkpoint into `module`; halves become float32.

    AlpharhoError for a padding, key, shape, dtype or value that does not fit; `module` is then as before.
    """
    path, recognised = checkpoint.path, checkpoint.recognised
    if checkpoint.padding not in (None, module.padding):
        raise AlpharhoError(
            f"{path} was trained with padding {checkpoint.padding!r}, the network has {module.padding!r}; "
            f"build it with padding={checkpoint.padding!r}"
        )
    theirs = {our: their for their, our in our_keys(module, recognised).items() if not our.endswith(_COUNTER)}
    state = {our: recognised.state[their] for our, their in theirs.items()}
    _check_fits(module, state, theirs, checkpoint)
    wanted = module.state_dict()
    state = {key: value.float().reshape(wanted[key].shape) for key, value in state.items()}
    state = with_norm_eps(module, state, recognised.source.norm_eps)
    module.load_state_dict(state, strict=False)


def load_weights(module: MobileNet, path: Path, named: str | None = None) -> Source:
    """Put the weights of `path` into `module` and return whose they are; errors as the two steps'."""
    checkpoint = read_checkpoint(path, named)
    fill(module, checkpoint)
    return checkpoint.source


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise AlpharhoError(f"no weights file at {path}")
    if path.suffix not in _SUFFIXES:
        raise AlpharhoError(
            f"{path} is no weights file that is read here; supported are {', '.join(_SUFFIXES)}"
        )


def _damaged(path: Path, error: BaseException) -> AlpharhoError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
    if isinstance(error, UnpicklingError):  # whose text advises to run what is in the file
        reason = "code, such as that of a whole module, which is never run, or no pickle"
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


def _check_fits(module: MobileNet, state: State, theirs: Mapping[str, str], checkpoint: Checkpoint) -> None:
    """AlpharhoError that names keys that are missing, wrongly shaped, of no float type, or unexpected."""
    path, family = checkpoint.path, checkpoint.source.family
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith(_COUNTER)}
    remedy = f"; of {family}, read are {SUPPORTED[family]}, each into the same model and alpha"
    _check_classes(module, state, checkpoint)
    missing = [f"{key} ({_shape(value)})" for key, value in wanted.items() if key not in state]
    if missing:
        raise AlpharhoError(f"{path} has no {_listed(missing)}, which the network has{remedy}")
    for key, value in wanted.items():
        if state[key].shape != value.shape and state[key].shape != (*value.shape, 1, 1):
            raise AlpharhoError(
                f"{path}: {theirs[key]} has shape {_shape(state[key])}, but the network's {key} has shape "
                f"{_shape(value)}{remedy}"
            )
        if not state[key].is_floating_point():
            raise AlpharhoError(f"{path}: {theirs[key]} is {state[key].dtype}, but weights are floats")
    unexpected = [theirs[key] for key in state if key not in wanted]
    if unexpected:
        raise AlpharhoError(f"{path} has {_listed(unexpected)}, for which the network has no place{remedy}")
    _check_finite({theirs[key]: value for key, value in state.items()}, f"{path} is damaged")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_classes(module: MobileNet, state: State, checkpoint: Checkpoint) -> None:
    """The last linear layer's bias; only its length differs between class counts."""
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    key = f"{layers[-1]}.bias"
    classes, found = len(module.get_parameter(key)), state.get(key)
    if found is not None and found.ndim == 1 and len(found) != classes:
        raise AlpharhoError(
            f"{checkpoint.path} has {len(found)} classes ({key}), the network has {classes}; build it with "
            f"num_classes={len(found)}"
        )


def _check_finite(state: State, finding: str) -> None:
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise AlpharhoError(f"{finding}: {key} has values that are not finite")


def _shape(value: Tensor) -> str:
    return "x".join(str(size) for size in value.shape) or "scalar"
