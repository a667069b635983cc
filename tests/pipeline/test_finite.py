"""NaN and infinity are told at the door, with the layer or the input that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.to_onnx import to_onnx
from pipeline.artifacts import AlpharhoError
from pipeline.convert import load_calibration, open_foreign
from pipeline.finite import check_inputs

SOURCE = Path("network.onnx")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_layer_with_a_number_that_is_none_is_named(part: str, value: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 5, 3, stride=2)).eval()
    path = tmp_path / "network.onnx"
    path.write_bytes(to_onnx(module, 12).SerializeToString())
    assert open_foreign(path).shape == (1, 3, 12, 12)
    getattr(module[2], part).data.view(-1)[1] = value
    path.write_bytes(to_onnx(module, 12).SerializeToString())
    with pytest.raises(
        AlpharhoError, match=r"network\.onnx: CONV_2D '.+' has weights or biases that are not"
    ):
        open_foreign(path)


def test_inputs_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    inputs = np.zeros((6, 3, 4, 4), np.float32)
    path = tmp_path / "inputs.npy"
    np.save(path, inputs)
    assert load_calibration(path, (1, 3, 4, 4), 0, 1).shape == inputs.shape
    inputs[2, 1, 3, 3], inputs[5, 0, 0, 0] = np.nan, -np.inf
    np.save(path, inputs)
    with pytest.raises(AlpharhoError, match=r"inputs\.npy: 2 of 6 inputs have values.*first is number 2"):
        load_calibration(path, (1, 3, 4, 4), 0, 1)
    check_inputs(np.zeros((2, 3), np.uint8), SOURCE)
