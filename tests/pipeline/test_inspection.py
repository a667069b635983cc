"""The verb `inspect` on good, poor, foreign and damaged files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import pipeline.audit_apart
from export.check import DelegateAudit
from export.graph import Graph, Node, Quantization, Tensor
from export.metadata import Metadata, entries, with_labels
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.read_tflite import read_tflite
from export.write_tflite import write_tflite
from pipeline.__main__ import main
from pipeline.artifacts import AlpharhoError
from pipeline.file_cost import mult_adds, size_by_part
from pipeline.findings import findings
from pipeline.inspection import report
from quantize.int8 import to_int8
from quantize.ranges import observe_ranges
from tests.export.graphs import node, onnx_model, random

MUTATIONS = 2000
LOADED = 6  # of the mutated files, also given to the runtime
ONE_PARTITION = DelegateAudit(1, ())


def small_graph() -> Graph:
    nodes = [
        node("Conv", "x", "w", "b", output="c", strides=[2, 2], pads=[1] * 4),
        node("HardSwish", "c", output="h"),
        node("Conv", "h", "d", output="k", group=5, pads=[1] * 4),
        node("GlobalAveragePool", "k", output="p"),
        node("Flatten", "p", output="f"),
        node("Gemm", "f", "g", "o", transB=1),
    ]
    constants = {
        "w": random(5, 6, 3, 3),
        "b": random(5),
        "d": random(5, 1, 3, 3),
        "g": random(4, 5),
        "o": random(4),
    }
    return run_passes(read_onnx(onnx_model(nodes, constants)), FLOAT_PASSES)


def small_images() -> NDArray[np.float32]:
    return np.ascontiguousarray(random(8, 6, 9, 7, seed=3).transpose(0, 2, 3, 1))


def int8_graph() -> Graph:
    graph = small_graph()
    return to_int8(graph, observe_ranges(graph, [small_images()]))


def written(path: Path, graph: Graph) -> Path:
    path.write_bytes(write_tflite(graph))
    return path


def test_a_good_file_has_no_warning_and_its_cost_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = Metadata(name="small", license="MIT", labels=("a", "b", "c", "d"), details={"alpha": "0.5"})
    graph = int8_graph()
    path = tmp_path / "good.tflite"
    content = write_tflite(graph, entries(about, "x", "y"))
    path.write_bytes(with_labels(content, about.labels))
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    expected = 5 * 4 * 5 * 6 * 9 + 5 * 4 * 5 * 9 + 4 * 5
    for line in (
        f"Mult-Adds: {expected:,}",
        "  name: small",
        "  license: MIT",
        "  description: alpha: 0.5",
        "attached: labels.txt",
        "XNNPACK partitions: 1",
        "note: 1 HARD_SWISH in float in an 8-bit file",
    ):
        assert line in text
    assert "warning" not in text


@pytest.mark.parametrize("make", [small_graph, int8_graph])
def test_sizes_by_part_add_up(make: object, tmp_path: Path) -> None:
    graph = make() if callable(make) else None
    assert graph is not None
    file = read_tflite(written(tmp_path / "m.tflite", graph))
    parts = size_by_part(file)
    assert sum(parts.values()) == file.bytes
    assert parts["structure"] > 0
    weights = sum(t.data.nbytes for n, t in graph.tensors.items() if t.data is not None and "weight" in n)
    assert parts["weights"] == weights


def test_a_float_file_has_no_finding(tmp_path: Path) -> None:
    file = read_tflite(written(tmp_path / "m.tflite", small_graph()))
    assert findings(file, ONE_PARTITION) == []
    assert mult_adds(file.subgraphs[0]) == 5 * 4 * 5 * 6 * 9 + 5 * 4 * 5 * 9 + 4 * 5


def per_tensor(graph: Graph) -> Graph:
    name = next(n.inputs[1] for n in graph.nodes if n.op == "CONV_2D")
    one = Quantization(np.array([0.01], np.float32), np.array([0], np.int64))
    return graph.with_nodes(graph.nodes, {name: replace(graph.tensors[name], quantization=one)})


def saturated(graph: Graph) -> Graph:
    name = next(n.inputs[1] for n in graph.nodes if n.op == "CONV_2D")
    tensor = graph.tensors[name]
    assert tensor.data is not None
    return graph.with_nodes(graph.nodes, {name: replace(tensor, data=np.full_like(tensor.data, 127))})


def transposed(graph: Graph) -> Graph:
    name = graph.nodes[0].output
    tensors = {
        "order": Tensor.constant(np.array([0, 1, 2, 3], np.int32)),
        "moved": graph.tensors[name],
    }
    nodes = [graph.nodes[0], Node("TRANSPOSE", (name, "order"), ("moved",))]
    nodes += [n.renamed({name: "moved"}) for n in graph.nodes[1:]]
    return graph.with_nodes(nodes, tensors)


@pytest.mark.parametrize(
    ("spoil", "warning"),
    [(per_tensor, "one scale for all channels"), (saturated, "at the limit"), (transposed, "1 TRANSPOSE")],
)
def test_what_is_wrong_is_found_and_fails_a_ci(
    spoil: object, warning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(spoil)
    path = written(tmp_path / "poor.tflite", spoil(int8_graph()))
    assert main(["inspect", str(path)]) == 1
    assert any(
        line.startswith("warning: ") and warning in line for line in capsys.readouterr().out.splitlines()
    )


def test_the_operator_that_breaks_a_partition_is_told_with_its_reason(tmp_path: Path) -> None:
    file = read_tflite(written(tmp_path / "m.tflite", int8_graph()))
    found = findings(file, DelegateAudit(2, ("AVERAGE_POOL_2D", "MIRROR_PAD", "QUANTIZE")))
    texts = [finding.text for finding in found if finding.level == "warning"]
    assert any("outside the delegate: 1 MIRROR_PAD: XNNPACK pads with zeros only" in text for text in texts)
    assert any("AVERAGE_POOL_2D" in text for text in texts)
    assert not any("1 QUANTIZE:" in text for text in texts)


def mutated(content: bytes, seed: int) -> bytes:
    """The file with a few bytes, a word, or its end changed; words go where the structure is."""
    generator = np.random.default_rng(seed)
    data = bytearray(content)
    if seed % 10 == 0:
        return bytes(data[: generator.integers(8, len(data))])
    for _ in range(int(generator.integers(1, 6))):
        at = int(generator.integers(8, len(data) - 4))
        word = generator.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, int(generator.integers(0, 2**32)), len(data)])
        if seed % 2:
            data[at] = int(generator.integers(0, 256))
        else:
            data[at : at + 4] = int(word).to_bytes(4, "little")
    return bytes(data)


def test_no_damaged_file_crashes_or_hangs_the_reader(tmp_path: Path) -> None:
    contents = [write_tflite(graph, {"note": b"x"}) for graph in (small_graph(), int8_graph())]
    contents.append(with_labels(contents[0], ("a", "b")))
    path = tmp_path / "mutated.tflite"
    refused = 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(contents[seed % len(contents)], seed))
        try:
            file = read_tflite(path)
        except AlpharhoError as error:
            refused += 1
            assert str(error).startswith(str(path))
            continue
        assert report(file, ONE_PARTITION)
    assert 0 < refused < MUTATIONS


def test_the_runtime_is_asked_in_a_process_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = write_tflite(int8_graph())
    path = tmp_path / "mutated.tflite"
    for seed in range(1, 1 + LOADED):
        path.write_bytes(mutated(content, seed))
        assert main(["inspect", str(path)]) in (0, 1)
        error = capsys.readouterr().err
        assert error.count("\n") <= 1


def test_a_crash_of_the_runtime_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "m.tflite", small_graph())
    monkeypatch.setattr(
        pipeline.audit_apart, "AUDIT", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    )
    with pytest.raises(AlpharhoError, match="crashes on it \\(SIGSEGV\\)"):
        pipeline.audit_apart.audit_apart(path)
    monkeypatch.setattr(pipeline.audit_apart, "AUDIT", "import time; time.sleep(60)")
    with pytest.raises(AlpharhoError, match="hangs on it"):
        pipeline.audit_apart.audit_apart(path, seconds=0.2)
