"""`python -m pipeline.table_counts`: the instruction counts that docs/tables.md shows.

Files with untrained weights, one inference each on an emulated core. A count is remembered with the sha256 of
its file, so that counting again counts what has changed and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

import models
from device_bench.device import BenchSpec, Device, connect
from device_bench.records import from_plain, read_json, to_plain, write_json
from export.graph import Attribute, Graph, Node, Tensor
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.to_onnx import to_onnx
from export.write_tflite import write_tflite
from pipeline.artifacts import AlpharhoError, sha256_of, write_bytes
from pipeline.convert import Calibration, convert_graph
from pipeline.untrained import file_of
from pipeline.variant import BUILD, IMAGENET_CLASSES, PRECISIONS, Variant
from quantize.float16 import FLOAT16_METADATA, to_float16
from quantize.int8 import Io
from quantize.recipes import RECIPES

COUNTS = Path("docs") / "instructions.json"
DEVICE = "emulated:cortex-a76"
SPEC = BenchSpec(processes=1, timeout_s=900)
SHOWN = ("float32", "int8")  # of forms of V1 and of single layers

FORMS = ("v1", "v1_flattened", "v1_low_rank")
FORM_POINTS = ((0.25, 128), (0.5, 160))
WHOLE = Variant("v1", 1.0, 224)
SMALL = (
    *(Variant(f"micronet_m{size}", 1.0, 224) for size in range(4)),
    Variant("v3_small", 0.35, 224),
    Variant("v3_small", 0.5, 224),
)
KINDS = ("pointwise", "depthwise", "other_convolutions", "rest")
MICRO = Variant("micronet_m2", 1.0, 224)
TAKEN_APART = {WHOLE: KINDS, MICRO: (*KINDS, "element_wise")}


@dataclass(frozen=True, slots=True)
class GroupConv:
    """A 1x1 convolution in groups of a MicroNet, on a map of `size` x `size`."""

    inputs: int
    outputs: int
    groups: int
    size: int

    @property
    def name(self) -> str:
        """As the counts are named: `24to144in6at28`."""
        return f"{self.inputs}to{self.outputs}in{self.groups}at{self.size}"


# fmt: off
GROUPED = (                         # rows of M2 and M3, squeezes and expansions
    GroupConv( 32,  12,  4, 56),
    GroupConv( 64,  24,  4, 28),
    GroupConv( 24, 144,  6, 28),
    GroupConv(192,  32,  4, 14),
    GroupConv( 64, 384,  8, 14),
    GroupConv(768, 128,  8,  7),
    GroupConv(128, 768, 16,  7),
    GroupConv(720, 120, 10,  7),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Counted:
    """Instructions of one inference of the file with this sha256."""

    sha256: str
    instructions: int


def load_counts(path: Path = COUNTS) -> dict[str, int]:
    """Instructions by name, for example `v1_1.00_224.int8` and `v1_1.00_224/depthwise.int8`."""
    return {name: found.instructions for name, found in _read(path).items()}


def kind_of(node: Node, graph: Graph) -> str:
    """What a table calls the operator. Operators on one pixel are those of generators, gates and the head."""
    shape = graph.tensors[node.output].shape
    if len(shape) != 4 or shape[1] == shape[2] == 1 or node.op not in _KINDS:
        return "rest"
    return _KINDS[node.op](node, graph)


def _conv_kind(node: Node, graph: Graph) -> str:
    kernel = graph.tensors[node.inputs[1]].shape[1:3]
    return "pointwise" if kernel == (1, 1) else "other_convolutions"


_KINDS: Mapping[str, Callable[[Node, Graph], str]] = {
    "CONV_2D": _conv_kind,
    "DEPTHWISE_CONV_2D": lambda node, graph: "depthwise",
    "MUL": lambda node, graph: "element_wise",
    "ADD": lambda node, graph: "element_wise",
    "SUB": lambda node, graph: "element_wise",
}


def part(graph: Graph, kind: str) -> Graph:
    """The operators of one kind with their shapes and weights: what they read comes in, all else goes out."""
    nodes = [node for node in graph.nodes if kind_of(node, graph) == kind]
    written = [name for node in nodes for name in node.outputs]
    read = [name for node in nodes for name in node.inputs if name and graph.tensors[name].data is None]
    inputs = tuple(name for name in dict.fromkeys(read) if name not in written)
    outputs = tuple(name for name in written if name not in read)
    return Graph(graph.tensors, (), inputs, outputs).with_nodes(nodes)


def group_conv(conv: GroupConv, groups: int) -> Graph:
    """The convolution as a graph of its own; one group is the dense one."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(conv.outputs, 1, 1, conv.inputs // groups)).astype(np.float32)
    tensors = {
        "x": Tensor((1, conv.size, conv.size, conv.inputs)),
        "weights": Tensor.constant(weights),
        "bias": Tensor.constant(np.zeros(conv.outputs, np.float32)),
        "y": Tensor((1, conv.size, conv.size, conv.outputs)),
    }
    options: dict[str, Attribute] = {"padding": "VALID", "stride_h": 1, "stride_w": 1, "dilation_h_factor": 1}
    attributes = {**options, "dilation_w_factor": 1, "fused_activation_function": "NONE"}
    return Graph(tensors, (Node("CONV_2D", ("x", "weights", "bias"), ("y",), attributes),), ("x",), ("y",))


def files(folder: Path) -> Iterator[tuple[str, Callable[[], Path]]]:
    """Name and maker of every file that is counted."""
    forms = [Variant(form, *point) for point in FORM_POINTS for form in FORMS]
    wanted = [*product(forms, SHOWN), *product((WHOLE, *SMALL), PRECISIONS)]
    for variant, precision in wanted:
        yield f"{variant.name}.{precision}", partial(file_of, variant, precision, BUILD)
    for variant, kinds in TAKEN_APART.items():
        for kind, precision in product(kinds, PRECISIONS):
            name = f"{variant.name}/{kind}.{precision}"
            yield name, partial(_part_file, folder / f"{name}.tflite", variant, precision, kind)
    for conv, precision in product(GROUPED, SHOWN):
        for groups in (1, conv.groups):
            name = f"{conv.name}/groups_{groups}.{precision}"
            yield name, partial(_conv_file, folder / f"{name}.tflite", conv, groups, precision)


@cache
def _graph_of(variant: Variant, precision: str) -> Graph:
    """The variant's graph before `_written`; its instructions do not depend on weights and images."""
    torch.manual_seed(0)
    module = models.deployed(models.build(variant.model, variant.alpha, IMAGENET_CLASSES).eval())
    graph = run_passes(read_onnx(to_onnx(module, variant.resolution)), FLOAT_PASSES)
    return _converted(graph, precision)


def _converted(graph: Graph, precision: str) -> Graph:
    if precision != "int8":
        return graph
    shape = graph.tensors[graph.inputs[0]].shape
    image = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    return convert_graph(precision, graph, Calibration([image], RECIPES["int8_min_max"], Io())).graph


def _written(graph: Graph, precision: str) -> bytes:
    """The file of a part: half precision is put on last, since it wraps weights in operators."""
    if precision == "float16":
        return write_tflite(to_float16(graph), FLOAT16_METADATA)
    return write_tflite(graph)


def _part_file(path: Path, variant: Variant, precision: str, kind: str) -> Path:
    write_bytes(path, _written(part(_graph_of(variant, precision), kind), precision))
    return path


def _conv_file(path: Path, conv: GroupConv, groups: int, precision: str) -> Path:
    """The convolution alone: its input and output are not converted."""
    made = _converted(group_conv(conv, groups), precision)
    write_bytes(path, _written(part(made, "pointwise"), precision))
    return path


def count(device: Device, file: Path) -> Counted:
    """Count one inference of `file`. DeviceError where the device cannot."""
    found = device.run(file, SPEC)
    return Counted(found.model.sha256, round(found.counts[0].per_inference))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="count only names that begin like this")


def run(arguments: argparse.Namespace) -> int:
    """Count what is missing or has changed, and write each count as soon as it is known."""
    counts = _read(COUNTS)
    with connect(DEVICE) as device:
        for name, make in files(BUILD / "tables"):
            if arguments.names and not name.startswith(tuple(arguments.names)):
                continue
            file = make()
            if name not in counts or counts[name].sha256 != sha256_of(file):
                counts[name] = count(device, file)
                write_json(COUNTS, to_plain(counts))
            print(f"{name}: {counts[name].instructions:,}", flush=True)
    return 0


def _read(path: Path) -> dict[str, Counted]:
    if not path.is_file():
        return {}
    plain = read_json(path)
    if not isinstance(plain, dict):
        raise AlpharhoError(f"{path}: not a table of counts; delete it and count again")
    return {name: from_plain(Counted, entry, name) for name, entry in plain.items()}


if __name__ == "__main__":
    PARSER = argparse.ArgumentParser(description=__doc__)
    add_arguments(PARSER)
    sys.exit(run(PARSER.parse_args()))
