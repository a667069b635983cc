"""Small PyTorch modules for tests: one operator each, every dimension a different size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS, RESOLUTION = 3, 20


class Lambda(nn.Module):
    """A function of the image, and the weights that it uses."""

    def __init__(self, function: Callable[..., Any], **weights: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, weight in weights.items():
            self.register_buffer(name, weight, persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, **dict(self.named_buffers()))


def uneven(x: Tensor) -> Tensor:
    """The image with sides of 20 and 13."""
    return x[:, :, :, 2:15]


def rows(x: Tensor) -> Tensor:
    """The image's first 7 columns as 7 rows of 60 numbers."""
    return uneven(x).permute(3, 0, 1, 2).reshape(13, 60)[:7]


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def as_if_trained(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, with batch norms that do something, of both signs."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                assert part.running_mean is not None and part.running_var is not None
                part.running_mean.normal_(0, 0.3, generator=generator)
                part.running_var.uniform_(0.3, 2, generator=generator)
                part.weight.normal_(1, 0.3, generator=generator)
                part.bias.normal_(0, 0.3, generator=generator)
    return module.eval()


def conv(*arguments: Any, **options: Any) -> nn.Module:
    return nn.Sequential(Lambda(uneven), nn.Conv2d(CHANNELS, *arguments, **options))


def norm(*before: nn.Module) -> nn.Module:
    channels = next((part.out_channels for part in reversed(before) if isinstance(part, nn.Conv2d)), CHANNELS)
    return as_if_trained(nn.Sequential(*before, nn.BatchNorm2d(channels)))


CASES: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: conv(5, (3, 2), (2, 1), (1, 0), (2, 3)),
    "convolution of groups without a bias": lambda: conv(6, 3, padding=1, groups=3, bias=False),
    "convolution of one weight": lambda: Lambda(
        lambda x, w: F.conv2d(x, w) + F.conv2d(x * x, w), w=values(4, 3, 3, 3)
    ),
    "convolution with its norm": lambda: norm(nn.Conv2d(CHANNELS, 5, 3)),
    "convolution with two norms": lambda: norm(nn.Conv2d(CHANNELS, 5, 3, bias=False), nn.BatchNorm2d(5)),
    "norm alone": lambda: norm(),
    "norm after an activation": lambda: norm(nn.Conv2d(CHANNELS, 5, 3), nn.ReLU()),
    "norm of rows": lambda: as_if_trained(nn.Sequential(Lambda(rows), nn.Linear(60, 5), nn.BatchNorm1d(5))),
    "padding": lambda: Lambda(lambda x: F.pad(uneven(x), (1, 2, 3, 0), value=0.5)),
    "padding before a convolution": lambda: nn.Sequential(
        nn.ZeroPad2d((1, 2, 3, 0)), nn.Conv2d(CHANNELS, 5, 3, padding=1)
    ),
    "ones before a convolution": lambda: nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(CHANNELS, 5, 3)),
    "cropping before a convolution": lambda: nn.Sequential(
        nn.ZeroPad2d((-1, 2, 0, 0)), nn.Conv2d(CHANNELS, 5, 3)
    ),
    "linear": lambda: nn.Sequential(Lambda(rows), nn.Linear(60, 5)),
    "linear, square": lambda: nn.Sequential(Lambda(rows), nn.Linear(60, 60), nn.Linear(60, 60, bias=False)),
    "linear without a bias": lambda: nn.Sequential(Lambda(rows), nn.Linear(60, 5, bias=False)),
    "product with a weight": lambda: Lambda(lambda x, w: rows(x) @ w, w=values(60, 4)),
    "weighted product": lambda: Lambda(
        lambda x, b, w: torch.addmm(b, rows(x), w, beta=0.5, alpha=2), b=values(4), w=values(60, 4)
    ),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardtanh of any bounds": lambda: nn.Hardtanh(-0.25, 1.5),
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "softmax": lambda: nn.Softmax(1),
    "softmax of rows": lambda: nn.Sequential(Lambda(rows), nn.Softmax(-1)),
    "sum": lambda: Lambda(lambda x: x + x[:, :1]),
    "sum with a number": lambda: Lambda(lambda x: x + 2.5),
    "sum with a weight": lambda: Lambda(lambda x, w: w + x, w=values(2, 3, 1, 1)),
    "difference": lambda: Lambda(lambda x: x[:, :, :, :1] - x),
    "difference from a number": lambda: Lambda(lambda x: x - 1),
    "product": lambda: Lambda(lambda x: x * x[:, :, :1, :1]),
    "product with a number": lambda: Lambda(lambda x: 3 * x),
    "product with what weights make": lambda: Lambda(lambda x, w: x * (w.view(1, 3, 1, 1) + 1), w=values(3)),
    "quotient": lambda: Lambda(lambda x: x / (2 + torch.sigmoid(x))),
    "quotient by a number": lambda: Lambda(lambda x: x / 255),
    "maximum": lambda: Lambda(lambda x: torch.maximum(x, -1 * x)),
    "mean of pixels": lambda: Lambda(lambda x: uneven(x).mean((2, 3))),
    "mean of pixels, kept": lambda: Lambda(lambda x: uneven(x).mean((-1, -2), keepdim=True)),
    "mean of channels": lambda: Lambda(lambda x: uneven(x).mean(1)),
    "maxima": lambda: nn.Sequential(Lambda(uneven), nn.MaxPool2d(3, 2, 1)),
    "maxima of the edge": lambda: nn.Sequential(Lambda(uneven), nn.MaxPool2d((2, 3), (3, 2), ceil_mode=True)),
    "maxima without a stride": lambda: nn.Sequential(Lambda(uneven), nn.MaxPool2d(3, dilation=2)),
    "averages": lambda: nn.Sequential(Lambda(uneven), nn.AvgPool2d((3, 2), (2, 1), (1, 0))),
    "averages of what is there": lambda: nn.Sequential(
        Lambda(uneven), nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    ),
    "concatenation": lambda: Lambda(lambda x: torch.cat([x, -1 * x[:, :2], x], 1)),
    "concatenation of one part twice": lambda: Lambda(lambda x: torch.cat([x[:, 1:], x[:, 1:]], -1)),
    "slices": lambda: Lambda(lambda x: x[:, 1:, 3:-2:2, -4:]),
    "transposition": lambda: Lambda(lambda x: uneven(x).transpose(1, -1)),
    "rows": lambda: Lambda(rows),
    "flattening": lambda: nn.Sequential(Lambda(uneven), nn.Flatten()),
    "rearrangement": lambda: Lambda(
        lambda x: uneven(x).reshape(1, -1, 26, 5).permute(0, 3, -2, 1).contiguous()
    ),
    "dropout": lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.5), nn.Identity()),
}
"""What a module does to the makers of modules that do it; every operator that is exported is among them."""
