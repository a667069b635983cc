"""Checkpoints of other projects: whose keys they have, where each tensor belongs, what input they ask for.

A row of SOURCES says how such networks were trained; NAMES says, block by block, what they call our modules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from models.blocks import ConvNormAct, DepthwiseSeparable, InvertedResidual, MobileNet
from models.micronet_blocks import Last, Lite, Regular, Stem
from models.normalisation import HALF, IMAGENET, UNIT, Normalisation
from pipeline.artifacts import AlpharhoError

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who trained a checkpoint, and with what: `norm_eps` None means the network's own.

    `padding` None means that the file says it.
    """

    name: str
    family: str
    padding: str | None
    norm_eps: float | None
    normalisation: Normalisation


# fmt: off
SOURCES = {source.name: source for source in (
    Source(name="alpharho", family="alpharho", padding=None, norm_eps=None, normalisation=HALF),
    Source(name="torchvision", family="torchvision", padding="torch", norm_eps=None, normalisation=IMAGENET),
    Source(name="timm", family="timm", padding="torch", norm_eps=1e-5, normalisation=IMAGENET),
    Source(name="timm_half", family="timm", padding="torch", norm_eps=1e-5, normalisation=HALF),
    Source(name="timm_unit", family="timm", padding="torch", norm_eps=1e-5, normalisation=UNIT),
    Source(name="timm_tf", family="timm", padding="tf", norm_eps=1e-3, normalisation=HALF),
    Source(name="micronet", family="micronet", padding="torch", norm_eps=None, normalisation=IMAGENET),
)}
"""By the name that --source takes. Those of timm have the same keys and differ in how they were trained."""

KEYS = {
    "alpharho": re.compile(r"features\.\d+\.(?!conv\.\d|block\.\d|stem\.\d|layers\.\d)[a-z]"),
    "torchvision": re.compile(r"features\.\d+\.(\d|conv\.\d|block\.\d)"),
    "timm": re.compile(r"(conv_stem|blocks\.\d+\.\d+|conv_head)\."),
    "micronet": re.compile(r"features\.\d+\.(stem|layers)\.\d"),
}
"""Family to what its keys look like and no other's do."""

TIMM_FILES = (
    ("tf_mobilenet*", "timm_tf"),
    ("mobilenet*miil*", "timm_unit"),
    ("mobilenet*ra4*", "timm_half"),
    ("mobilenetv1_*", "timm_half"),
    ("mobilenetv2_*", "timm"),
    ("mobilenetv3_*.ra_*", "timm"),
    ("mobilenetv3_*_ra-*", "timm"),
    ("mobilenetv3_*lamb*", "timm"),
)
"""How timm names its released weights; the first pattern that fits the file's or folder's name counts."""

SUPPORTED = {
    "alpharho": "this project's own networks",
    "torchvision": "mobilenet_v2 of any width, mobilenet_v3_small and mobilenet_v3_large",
    "timm": "mobilenetv1_100 and _125, mobilenetv2_035 to _140, mobilenetv3_small_075 and _100, "
            "mobilenetv3_large_075 and _100, tf_mobilenetv3_*",
    "micronet": "the authors' MicroNet M0 to M3",
}
"""Family to the networks of it that ours can hold."""

# What each family calls our modules, by kind of block; several spellings are separated by blanks.
MICRO_PAIR = {"vertical.conv": "0", "vertical.norm": "1", "horizontal.conv": "2", "horizontal.norm": "3"}
TIMM_GATE = {"squeeze_excite.reduce": "se.conv_reduce", "squeeze_excite.expand": "se.conv_expand"}

TIMM_BLOCKS: dict[str, dict[str, str]] = {
    "separable": {
        "depthwise.conv": "conv_dw", "depthwise.norm": "bn1",
        "pointwise.conv": "conv_pw", "pointwise.norm": "bn2",
    },
    "bottleneck": {
        "depthwise.conv": "conv_dw", "depthwise.norm": "bn1", **TIMM_GATE,
        "project.conv": "conv_pw", "project.norm": "bn2",
    },
    "expanding": {
        "expand.conv": "conv_pw", "expand.norm": "bn1",
        "depthwise.conv": "conv_dw", "depthwise.norm": "bn2", **TIMM_GATE,
        "project.conv": "conv_pwl", "project.norm": "bn3",
    },
    "conv": {"conv": "conv", "norm": "bn1"},
}
TIMM_STEM = {"features.0.conv": "conv_stem", "features.0.norm": "bn1"}
TIMM_LAST = {"conv": "conv_head", "norm": "bn2"}  # of V2, which has it outside the blocks
TIMM_CLASSIFIERS = {
    1: {"classifier.1": "classifier"},
    2: {"classifier.0": "conv_head", "classifier.3": "classifier"},
}
"""Number of linear layers to their names."""

TORCHVISION_BLOCKS: dict[str, dict[str, str]] = {
    "conv": {"conv": "0", "norm": "1"},
    "bottleneck": {
        "depthwise.conv": "conv.0.0 block.0.0", "depthwise.norm": "conv.0.1 block.0.1",
        "squeeze_excite.reduce": "block.1.fc1", "squeeze_excite.expand": "block.1.fc2",
        "project.conv": "conv.1 block.1.0 block.2.0", "project.norm": "conv.2 block.1.1 block.2.1",
    },
    "expanding": {
        "expand.conv": "conv.0.0 block.0.0", "expand.norm": "conv.0.1 block.0.1",
        "depthwise.conv": "conv.1.0 block.1.0", "depthwise.norm": "conv.1.1 block.1.1",
        "squeeze_excite.reduce": "block.2.fc1", "squeeze_excite.expand": "block.2.fc2",
        "project.conv": "conv.2 block.2.0 block.3.0", "project.norm": "conv.3 block.2.1 block.3.1",
    },
}
"""The first spelling is V2's, the others V3's without and with squeeze-and-excite."""

MICRONET_BLOCKS: dict[str, dict[str, str]] = {
    "stem": {our: f"stem.0.conv.{their}" for our, their in MICRO_PAIR.items()},
    "lite": {
        **{f"depthwise.{our}": f"layers.0.conv.{their}" for our, their in MICRO_PAIR.items()},
        "wide.reduce": "layers.1.fc.0", "wide.expand": "layers.1.fc.2",
        "squeeze.conv": "layers.4.conv.0", "squeeze.norm": "layers.4.conv.1",
        "narrow.reduce": "layers.5.fc.0", "narrow.expand": "layers.5.fc.2",
    },
    "regular": {
        "expand.conv": "layers.0.conv.0", "expand.norm": "layers.0.conv.1",
        "first.reduce": "layers.1.fc.0", "first.expand": "layers.1.fc.2",
        **{f"depthwise.{our}": f"layers.3.conv.{their}" for our, their in MICRO_PAIR.items()},
        "wide.reduce": "layers.5.fc.0", "wide.expand": "layers.5.fc.2",
        "squeeze.conv": "layers.7.conv.0", "squeeze.norm": "layers.7.conv.1",
        "narrow.reduce": "layers.8.fc.0", "narrow.expand": "layers.8.fc.2",
    },
    "last": {
        "expand.conv": "layers.0.conv.0", "expand.norm": "layers.0.conv.1",
        "act.reduce": "layers.1.fc.0", "act.expand": "layers.1.fc.2",
    },
}
MICRONET_CLASSIFIER = {
    "classifier.1": "classifier.0.linear.0", "classifier.2": "classifier.0.linear.1",
    "classifier.5": "classifier.2.linear.0", "classifier.6": "classifier.2.linear.1",
}
# fmt: on

KINDS: dict[type[nn.Module], str] = {
    ConvNormAct: "conv",
    DepthwiseSeparable: "separable",
    InvertedResidual: "bottleneck",
    Stem: "stem",
    Lite: "lite",
    Regular: "regular",
    Last: "last",
}

TIMM_PLACE = re.compile(r"blocks\.(\d+)\.(\d+)\.")
PARALLEL = "module."  # before every key of a network that was trained on several devices
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # beside which the hub keeps a config.json


@dataclass(frozen=True, slots=True)
class Recognised:
    """Tensors by their own keys, and whose they are."""

    state: State
    source: Source

    @property
    def classes(self) -> int | None:
        """Number of classes: the length of the last linear layer's bias; None where there is none."""
        layers = [
            key
            for key, value in self.state.items()
            if key.startswith("classifier") and key.endswith(".weight") and value.ndim == 2
        ]
        return len(self.state[max(layers, key=_natural)]) if layers else None


def recognise(state: State, path: Path, named: str | None = None) -> Recognised:
    """Whose checkpoint it is, from its keys; for timm's also from the names of the file or its config.json.

    `named` is a key of SOURCES and settles what keys cannot tell. AlpharhoError for keys of nobody known, for
    a name that contradicts them, and for timm's keys when nothing tells how the network was trained.
    """
    state = _without_parallel(state)
    family = _family(state, path)
    if named is not None:
        return Recognised(state, _named(named, family, path))
    if family != "timm":
        return Recognised(state, SOURCES[family])
    return Recognised(state, _timm(path))


def our_keys(module: MobileNet, recognised: Recognised) -> dict[str, str]:
    """Their keys to ours, in their order; a key that has no place in `module` keeps its name."""
    places = {
        their: our
        for our, names in NAMES[recognised.source.family](module, recognised.state)
        for their in names.split()
    }
    split = ((key, *key.rpartition(".")) for key in recognised.state)
    return {key: f"{places.get(prefix, prefix)}{dot}{leaf}" for key, prefix, dot, leaf in split}


def with_norm_eps(module: MobileNet, state: State, eps: float | None) -> State:
    """`state` by our keys, of batch norms with `eps`, for `module`, whose own may differ: the same function.

    The scale absorbs the difference: scale' / sqrt(var + own) = scale / sqrt(var + eps).
    """
    norms = {
        name: part.eps
        for name, part in module.named_modules()
        if isinstance(part, nn.BatchNorm2d) and eps is not None and part.eps != eps
    }
    changed = dict(state)
    for name, own in norms.items():
        variance = state[f"{name}.running_var"].double()
        factor = torch.sqrt((variance + own) / (variance + (eps or 0.0)))
        changed[f"{name}.weight"] = (state[f"{name}.weight"].double() * factor).float()
    return changed


def _family(keys: Iterable[str], path: Path) -> str:
    found = {family: sum(bool(form.match(key)) for key in keys) for family, form in KEYS.items()}
    family = max(found, key=lambda name: found[name])
    if not found[family]:
        supported = "; ".join(f"{name}: {networks}" for name, networks in SUPPORTED.items())
        first = ", ".join(list(keys)[:2])
        raise AlpharhoError(f"{path}: nobody's keys that are known here ({first}, ...); read are {supported}")
    return family


def _named(name: str, family: str, path: Path) -> Source:
    if name not in SOURCES:
        raise AlpharhoError(f"unknown source {name!r}; choose one of {', '.join(SOURCES)}")
    if SOURCES[name].family != family:
        fitting = [source.name for source in SOURCES.values() if source.family == family]
        raise AlpharhoError(
            f"{path} has the keys of {family}, not of {name}; the sources that fit are {', '.join(fitting)}"
        )
    return SOURCES[name]


def _timm(path: Path) -> Source:
    """Keys of timm do not tell the padding or the normalisation, its files' names and config.json do."""
    config = _hub_config(path)
    names = [str(config.get("architecture", "")), path.name, path.parent.name]
    known = next((kind for name in names for form, kind in TIMM_FILES if fnmatchcase(name, form)), None)
    trained = config.get("pretrained_cfg")
    if isinstance(trained, dict) and {"mean", "std"} <= set(trained):
        base = SOURCES["timm_tf" if names[0].startswith("tf_") else "timm"]
        return replace(base, normalisation=Normalisation(tuple(trained["mean"]), tuple(trained["std"])))
    if known is None:
        kinds = (
            f"{source.name} (padding {source.padding}, {source.normalisation})"
            for source in SOURCES.values()
            if source.family == "timm"
        )
        raise AlpharhoError(
            f"{path}: timm's keys do not tell how the network was trained, and neither does the file's name; "
            f"say it with --source: {', '.join(kinds)}"
        )
    return SOURCES[known]


def _hub_config(path: Path) -> Mapping[str, object]:
    beside = path.with_name("config.json")
    if path.name not in HUB_FILES or not beside.is_file():
        return {}
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise AlpharhoError(f"{beside}: not readable JSON ({error}); repair it or move it away") from error
    return content if isinstance(content, dict) else {}


def _without_parallel(state: State) -> State:
    if not all(key.startswith(PARALLEL) for key in state):
        return state
    return {key.removeprefix(PARALLEL): value for key, value in state.items()}


# --- our modules and what each family calls them ------------------------------------------------------------

Places = Iterator[tuple[str, str]]


def _ours(module: MobileNet, keys: Iterable[str]) -> Places:
    yield from ()


def _torchvision(module: MobileNet, keys: Iterable[str]) -> Places:
    for i, kind in enumerate(_kinds(module)):
        yield from _inside(f"features.{i}.", f"features.{i}.", TORCHVISION_BLOCKS.get(kind, {}))


def _micronet(module: MobileNet, keys: Iterable[str]) -> Places:
    for i, kind in enumerate(_kinds(module)):
        yield from _inside(f"features.{i}.", f"features.{i}.", MICRONET_BLOCKS.get(kind, {}))
    yield from MICRONET_CLASSIFIER.items()


def _timm_names(module: MobileNet, keys: Iterable[str]) -> Places:
    """Blocks are counted through: `blocks.S.I` are ours after the stem, in order."""
    found = {(int(match[1]), int(match[2])) for match in map(TIMM_PLACE.match, keys) if match}
    prefixes = [f"blocks.{stage}.{i}." for stage, i in sorted(found)]
    yield from TIMM_STEM.items()
    for i, kind in enumerate(_kinds(module)[1:]):
        outside = i >= len(prefixes)
        table = TIMM_LAST if outside else TIMM_BLOCKS.get(kind, {})
        yield from _inside(f"features.{i + 1}.", "" if outside else prefixes[i], table)
    linear = sum(isinstance(layer, nn.Linear) for layer in module.classifier)
    yield from TIMM_CLASSIFIERS[linear].items()


NAMES: dict[str, Callable[[MobileNet, Iterable[str]], Places]] = {
    "alpharho": _ours,
    "torchvision": _torchvision,
    "timm": _timm_names,
    "micronet": _micronet,
}
"""Family to (our module, its names for it) for one network and the keys of one file."""


def _kinds(module: MobileNet) -> list[str]:
    kinds = [KINDS.get(type(block), "") for block in module.features]
    return [
        "expanding" if isinstance(block, InvertedResidual) and hasattr(block, "expand") else kind
        for kind, block in zip(kinds, module.features, strict=True)
    ]


def _inside(ours: str, theirs: str, table: Mapping[str, str]) -> Places:
    for our, names in table.items():
        yield f"{ours}{our}", " ".join(f"{theirs}{name}" for name in names.split())


def _natural(key: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in key.split(".")]
