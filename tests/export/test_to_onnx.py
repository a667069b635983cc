"""The exporter beside PyTorch, which says what the numbers are, and beside PyTorch's own exporter."""

from __future__ import annotations

import contextlib
import copy
import io
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

import models
from export import aten
from export.to_onnx import OPSET, to_onnx
from export.trace import trace
from models import detectors
from models.registry import NAMES
from pipeline.artifacts import AlpharhoError
from tests.export.modules import CASES, CHANNELS, RESOLUTION, Lambda, as_if_trained, norm, rows, values

CLOSE = 1e-5  # of the range of the values
ALPHA, CLASSES = 0.25, 7
SIZE = 64

Arrays = list[NDArray[np.float32]]


def image_of(resolution: int) -> Tensor:
    return torch.rand(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(5)) * 4 - 2


def by_pytorch(module: nn.Module, image: Tensor) -> Arrays:
    with torch.no_grad():
        made = module(image)
    return [part.numpy() for part in (made if isinstance(made, tuple) else (made,))]


def by_onnx(model: onnx.ModelProto, image: Tensor) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(part) for part in session.run(None, {"image": image.numpy()})]


def check_equal(found: Arrays, expected: Arrays, rounding: Sequence[float] | None = None) -> None:
    for one, other, error in zip(found, expected, rounding or [0.0] * len(expected), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=CLOSE * float(np.ptp(other)) + 4 * error)


def check_as_pytorch(module: nn.Module, resolution: int, names: Sequence[str] = ("y",)) -> onnx.ModelProto:
    """The numbers are those of double precision, up to four times the rounding of PyTorch's own float32."""
    module, image = module.eval(), image_of(resolution)
    model, single = to_onnx(module, resolution, names), by_pytorch(module, image)
    exact = by_pytorch(copy.deepcopy(module).double(), image.double())
    rounding = [float(abs(one - other).max()) for one, other in zip(single, exact, strict=True)]
    check_equal(by_onnx(model, image), exact, rounding)
    return model


def doors(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*model.graph.input, *model.graph.output]


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("case", CASES)
def test_an_operator_gives_pytorchs_numbers(case: str) -> None:
    torch.manual_seed(0)
    check_as_pytorch(CASES[case](), RESOLUTION)


def test_every_row_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[str] = set()

    class Watched(dict[str, aten.Row]):
        def get(self, name: str, default: Any = None) -> Any:
            used.add(name)
            return super().get(name, default)

    monkeypatch.setattr("export.trace.ROWS", Watched(aten.ROWS))
    for make in CASES.values():
        trace(make().eval(), (1, CHANNELS, RESOLUTION, RESOLUTION))
    assert used == set(aten.ROWS)


def network(name: str) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    module = as_if_trained(models.build(name, ALPHA, CLASSES))
    assert isinstance(module, models.MobileNet)
    return models.deployed(module), max(SIZE, models.network(name).least_resolution)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_gives_pytorchs_numbers(name: str) -> None:
    module, resolution = network(name)
    model = check_as_pytorch(module, resolution, ("logits",))
    assert not {"BatchNormalization", "Pad", "Identity"} & set(ops(model))


def by_pytorchs_exporter(module: nn.Module, resolution: int, names: Sequence[str]) -> onnx.ModelProto:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (image_of(resolution),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(names),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def detector() -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    backbone = models.build("v3_small", ALPHA)
    return as_if_trained(detectors.detector("ssdlite", "v3_small", backbone, 5)), 96


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (lambda: network("v3_small"), ("logits",)),
        (lambda: network("micronet_m0"), ("logits",)),
        (detector, ("boxes", "scores")),
    ],
    ids=["v3_small", "micronet_m0", "ssdlite"],
)
def test_pytorchs_exporter_gives_the_same_operators_and_numbers(made: Any, names: Sequence[str]) -> None:
    module, resolution = made()
    image, reference = image_of(resolution), by_pytorchs_exporter(module, resolution, names)
    model = to_onnx(module, resolution, names)
    check_equal(by_onnx(model, image), by_onnx(reference, image))
    assert ops(model) == ops(reference)
    for found, expected in zip(doors(model), doors(reference), strict=True):
        assert (found.name, found.type) == (expected.name, expected.type)


def test_no_compiler_and_no_other_exporter_is_loaded() -> None:
    """What makes the difference of seconds: PyTorch's own shape functions load its compiler."""
    asked = (
        "import sys, models; from export.to_onnx import to_onnx;"
        "to_onnx(models.build('v3_small', 0.25), 64);"
        "to_onnx(models.deployed(models.build('micronet_m0')), 64);"
        "print([name for name in ('torch._dynamo', 'onnxscript', 'sympy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


class Block(nn.Module):
    """A branch with two readers, and children with names."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu6(self.expand(x) + x) + self.expand(x)
        return y * self.gate(F.relu6(y))


def test_values_are_named_by_module_path() -> None:
    graph = to_onnx(as_if_trained(nn.Sequential(Block(), Block())), RESOLUTION).graph
    assert [node.name for node in graph.node if node.name.startswith("0")] == [
        "0/expand/0",
        "0/expand/2",
        "0/add",
        "0/relu6",
        "0/add_1",
        "0/relu6_1",
        "0/gate",
        "0/mul",
    ]
    assert [node.name for node in graph.node] == [node.output[0] for node in graph.node]
    weights = {initializer.name for initializer in graph.initializer}
    assert {"0.expand.0.weight", "0.expand.0.bias", "1.expand.0.weight", "1.expand.0.bias"} <= weights
    assert graph.output[0].name == graph.node[-1].output[0] == "logits"
    assert graph.name == "Sequential"


def test_a_linear_layer_keeps_its_weight_as_it_lies() -> None:
    layer = nn.Linear(60, 60)
    model = to_onnx(nn.Sequential(Lambda(rows), layer), RESOLUTION)
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    np.testing.assert_array_equal(stored["1.weight"], layer.weight.detach().numpy())


def test_a_norm_is_folded_in_double_precision() -> None:
    module = norm(nn.Conv2d(3, 4, 3))
    conv, after = module.get_submodule("0"), module.get_submodule("1")
    assert isinstance(conv, nn.Conv2d) and isinstance(after, nn.BatchNorm2d) and conv.bias is not None
    assert after.running_var is not None and after.running_mean is not None
    gain = after.weight.double() / (after.running_var.double() + after.eps).sqrt()
    model = to_onnx(module, RESOLUTION)
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    with torch.no_grad():
        weight = (conv.weight.double() * gain.view(-1, 1, 1, 1)).float()
        bias = ((conv.bias.double() - after.running_mean.double()) * gain + after.bias.double()).float()
    np.testing.assert_array_equal(stored["0.weight"], weight.numpy())
    np.testing.assert_array_equal(stored["0.bias"], bias.numpy())


class ReadTwice(nn.Module):
    """What a fold would take away has another reader, or is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (0, 1, 0, 1))
        made = self.conv(padded)
        return made, self.norm(made) + self.norm(self.conv(padded))


def test_what_has_another_reader_is_not_folded() -> None:
    model = check_as_pytorch(as_if_trained(ReadTwice()), RESOLUTION, ("made", "normed"))
    assert ops(model) == {"Pad": 1, "Conv": 2, "BatchNormalization": 1, "Add": 1}


def test_weights_and_modes_of_the_module_stay() -> None:
    module = as_if_trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    to_onnx(module, RESOLUTION)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(value.requires_grad for value in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Sequential(nn.ReLU(), nn.GELU()), r"aten::gelu in '1' cannot be exported: it is not among"),
        (nn.ReLU(inplace=True), "aten::relu_"),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 2)), "aten::convolution in '0' .* a transposed convolution"),
        (nn.BatchNorm2d(3, affine=False), "aten::native_batch_norm .* no weight or bias"),
        (nn.BatchNorm2d(3, track_running_stats=False), "takes its statistics from the batch"),
        (
            nn.Conv2d(3, 4, 1).double(),
            r"weight is torch\.float64, only float32 is exported; call the module's",
        ),
        (Lambda(lambda x, w: x * w, w=torch.tensor(3)), r"aten::mul\.Tensor .* it reads torch\.int64"),
        (nn.AvgPool2d(2, divisor_override=3), "its divisor is 3"),
        (Lambda(lambda x: torch.add(x, x, alpha=2)), "its alpha is 2"),
        (Lambda(lambda x: rows(x) @ x.reshape(60, 20)), "aten::mm .* both factors are computed"),
        (nn.Sequential(nn.MaxPool2d(2, return_indices=True), Lambda(lambda x: x[1] * 2)), "second result of"),
        (Lambda(lambda x: x if x.max() > 0 else x * 2), "aten::max "),
        (
            Lambda(lambda x, w: w, w=values(3)),
            "returns Tensor; what is exported returns a tensor that is comp",
        ),
        (Lambda(lambda x: {"y": x + 1}), "returns dict"),
        (nn.Identity(), "returns Tensor"),
        (Lambda(lambda x: (x + 1,) * 2), "returns tuple"),
        (
            Lambda(lambda x: (x + 1, x + 2)),
            r"Lambda has 2 outputs, 1 names are given \(logits\); name each one",
        ),
    ],
)
def test_what_cannot_be_exported_is_told(module: nn.Module, said: str) -> None:
    with pytest.raises(AlpharhoError, match=said):
        to_onnx(module, RESOLUTION)


def test_a_refusal_names_the_remedy() -> None:
    with pytest.raises(AlpharhoError, match=r"torch\.onnx\.export .* 'python -m pipeline convert'"):
        to_onnx(nn.Sequential(nn.GELU()), RESOLUTION)


@given(
    sizes=st.tuples(*[st.integers(9, 20)] * 2),
    kernel=st.tuples(*[st.integers(1, 4)] * 2),
    stride=st.tuples(*[st.integers(1, 4)] * 2),
    share=st.tuples(*[st.integers(0, 2)] * 2),
    dilation=st.tuples(*[st.integers(1, 2)] * 2),
    ceil_mode=st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_windows_are_counted_as_pytorch_counts_them(
    sizes: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    share: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
) -> None:
    padding = (min(share[0], kernel[0] // 2), min(share[1], kernel[1] // 2))
    crop = Lambda(lambda x: x[:, :, : sizes[0], : sizes[1]])
    for part in (
        nn.MaxPool2d(kernel, stride, padding, dilation, False, ceil_mode),
        nn.Conv2d(3, 4, kernel, stride, padding, dilation),
    ):
        module = nn.Sequential(crop, part)
        found = trace(module, (1, CHANNELS, RESOLUTION, RESOLUTION)).results[0]
        assert found.shape == module(image_of(RESOLUTION)).shape
