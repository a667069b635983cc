"""Quantisation and simulation on the device that was chosen, in as many threads as there may be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from export import parallel
from export.graph import Graph
from export.parallel import ahead, chosen_device, workers
from export.run import Program
from quantize.diagnose import diagnose
from quantize.int8 import Io
from quantize.recipes import RECIPES, quantize
from tests.quantize.networks import images, inverted_residuals, squeezed
from tests.quantize.pretended_gpu import GPU, AtOnce, PretendedGpu


def _assert_same(first: Graph, second: Graph) -> None:
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        if tensor.data is not None:
            np.testing.assert_array_equal(tensor.data, second.tensors[name].data)


@pytest.mark.parametrize("recipe", ["int8", "int8_per_tensor", "int8_min_max"])
@pytest.mark.parametrize("make", [inverted_residuals, squeezed])
def test_everything_is_computed_on_the_gpu_where_there_is_one(
    make: Callable[[], Graph], recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, calibration = make(), images(12)
    expected = quantize(graph, [calibration], RECIPES[recipe], Io()).graph
    simulated = Program(expected)(calibration)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(parallel, "ThreadPoolExecutor", AtOnce)
    with PretendedGpu() as gpu:
        found = quantize(graph, [calibration], RECIPES[recipe], Io()).graph
        program = Program(found)
        np.testing.assert_array_equal(program(calibration), simulated)
    assert program.device == GPU and gpu.operations > 100
    _assert_same(found, expected)


def test_diagnosis_is_computed_on_the_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, few = inverted_residuals(), images(4)
    quantized = quantize(graph, [few], RECIPES["int8_min_max"], Io())
    expected = diagnose(graph, quantized.graph, few)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(parallel, "ThreadPoolExecutor", AtOnce)
    with PretendedGpu() as gpu:
        assert diagnose(graph, quantized.graph, few) == expected
    assert gpu.operations > 100


def test_the_pretended_gpu_refuses_what_a_real_one_does() -> None:
    with PretendedGpu():
        there = torch.ones(3).to(GPU)
        assert (there + 1).device == GPU and there.cpu().device == torch.device("cpu")
        with pytest.raises(RuntimeError, match="on the CPU and on the GPU"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="is on the GPU"):
            there.numpy()


def test_the_number_of_threads_changes_nothing_and_comes_back() -> None:
    graph, given = inverted_residuals(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(quantize(graph, [images(12)], RECIPES["int8"], Io()).graph)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(given)
    _assert_same(*found)


def test_workers_compute_on_one_core_each_and_give_all_back_after_an_error() -> None:
    given = torch.get_num_threads()
    with pytest.raises(ValueError, match="stop"), workers(torch.device("cpu")) as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(4))) == {1}
        raise ValueError("stop")
    assert torch.get_num_threads() == given


def test_ahead_keeps_the_order_and_passes_errors_on() -> None:
    assert list(ahead(lambda item: item * item, range(5))) == [0, 1, 4, 9, 16]
    results = ahead(lambda item: 1 // item, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_program_runs_where_it_is_told_to() -> None:
    assert chosen_device().type in ("cpu", "cuda")
    assert Program(inverted_residuals(), "cpu").device == torch.device("cpu")
