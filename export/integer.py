"""The delegate's 8-bit arithmetic on centred integers (stored - zero point) held as float32, simulated.

XNNPACK accumulates in 32 bits, multiplies by a float32 ratio of scales and rounds half to even; only ADD and
SUB use fixed point and round half up. Sums below 2^24 are exact in float32, and those of MobileNets are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from export.graph import Quantization, Tensor

Operands = list[torch.Tensor]
Kernel = Callable[[Operands, Mapping[str, Any]], torch.Tensor]

BOUNDS: dict[np.dtype[np.generic], tuple[int, int]] = {
    np.dtype(np.int8): (-128, 127),
    np.dtype(np.uint8): (0, 255),
}
CLAMPS = {"NONE": (-math.inf, math.inf), "RELU": (0.0, math.inf), "RELU6": (0.0, 6.0)}
ADD_BITS = 20  # of the larger multiplier's fraction in the delegate's ADD


@dataclass(frozen=True, slots=True)
class Grid:
    """An 8-bit tensor's scale (float32) and the centred integers that it can hold."""

    scale: np.float32
    low: float
    high: float

    @classmethod
    def of(cls, tensor: Tensor) -> Grid:
        """The grid of a tensor with one 8-bit scale."""
        assert tensor.quantization is not None
        zero_point = int(tensor.quantization.zero_point[0])
        low, high = BOUNDS[tensor.dtype]
        return cls(np.float32(tensor.quantization.scale[0]), low - zero_point, high - zero_point)

    def clamped(self, activation: str) -> Grid:
        """The grid cut to what a fused activation lets through."""
        low, high = (bound / float(self.scale) for bound in CLAMPS[activation])
        low = self.low if math.isinf(low) else max(self.low, round(low))
        high = self.high if math.isinf(high) else min(self.high, round(high))
        return Grid(self.scale, low, high)


def is_on_grid(tensor: Tensor) -> bool:
    """Whether the tensor's values are 8-bit integers with one scale."""
    return tensor.quantization is not None and tensor.dtype in BOUNDS and len(tensor.quantization.scale) == 1


def quantized(values: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Real `values` as centred integers of `grid`; rounds half to even, saturates."""
    return torch.clamp(torch.round(values * float(np.float32(1) / grid.scale)), grid.low, grid.high)


def requantized(accumulated: torch.Tensor, ratio: torch.Tensor | float, grid: Grid) -> torch.Tensor:
    """Accumulators times `ratio` (of accumulator to output scale) on `grid`. Overwrites `accumulated`."""
    return accumulated.mul_(ratio).round_().clamp_(grid.low, grid.high)


def requantization_ratio(source: Grid, weights: Quantization, target: Grid) -> torch.Tensor:
    """Input x weight / output scale in the delegate's order of float32 operations; float32 [channels]."""
    return torch.from_numpy(np.array(source.scale * weights.scale / target.scale, np.float32))


def added(a: torch.Tensor, b: torch.Tensor, ratios: Sequence[float], grid: Grid) -> torch.Tensor:
    """A x ratios[0] + b x ratios[1] in the delegate's fixed point, on `grid`."""
    shift = ADD_BITS - math.frexp(max(abs(ratio) for ratio in ratios))[1] + 1
    first, second = (round(math.ldexp(ratio, shift)) for ratio in ratios)
    total = a.to(torch.int32) * first + b.to(torch.int32) * second + (1 << (shift - 1))
    return torch.clamp(total >> shift, grid.low, grid.high).to(torch.float32)


def dynamically_quantized(values: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Real `values` rounded to 8 bits, with a grid for all that lies along `axes`."""
    low, high = values.amin(axes, keepdim=True).clamp_(max=0), values.amax(axes, keepdim=True).clamp_(min=0)
    scale = ((high - low) / 255).clamp_(min=torch.finfo(torch.float32).tiny)
    zero_point = torch.round(-128 - low / scale).clamp_(-128, 127)
    return (torch.clamp(torch.round(values / scale) + zero_point, -128, 127) - zero_point) * scale
