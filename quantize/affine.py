"""Scale and zero-point mathematics.

real = scale * (stored - zero_point), stored = clip(round_half_even(real / scale) + zero_point), as in the
TFLite 8-bit specification: activations asymmetric int8 with an exact zero, weights symmetric per channel in
[-127, 127], bias int32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.graph import Graph, Node, Quantization, channel_axis

INT8_MIN, INT8_MAX = -128, 127
WEIGHT_MAX = 127  # XNNPACK's depthwise kernels add two products in 16 bits, so -128 is never used
SMALLEST_SCALE = 1e-9
LARGEST_RATIO = 255.0  # of input x weight scale to output scale; the delegate's own limit is 2^8

Floats = NDArray[np.float32] | NDArray[np.float64]


def activation_quantization(low: float, high: float) -> Quantization:
    """Asymmetric int8 parameters whose grid holds zero exactly and covers [low, high]."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (INT8_MAX - INT8_MIN), SMALLEST_SCALE)
    zero_point = int(np.clip(round(INT8_MIN - low / scale), INT8_MIN, INT8_MAX))
    return per_tensor(scale, zero_point)


def per_tensor(scale: float, zero_point: int) -> Quantization:
    """Parameters with one scale for the whole tensor."""
    return Quantization(np.array([scale], np.float32), np.array([zero_point], np.int64))


def weight_scales(weights: Floats, axis: int) -> NDArray[np.float64]:
    """Scale per channel that maps the largest magnitude to 127, zero for a dead one; float64 [channels]."""
    others = tuple(other for other in range(weights.ndim) if other != axis)
    return np.asarray(np.abs(weights.astype(np.float64)).max(axis=others) / WEIGHT_MAX)


def delegate_factors(weights: Floats, axis: int, ratio: float) -> NDArray[np.float64]:
    """What every channel's weights and bias must be multiplied by for the delegate; float64 [channels], <= 1.

    `ratio` is input scale / output scale; times the weight scale it must stay below 2^8. Beyond that a single
    step of a channel's sum is more than the whole output range, so the smaller channel is still either end.
    """
    return 1 / np.maximum(weight_scales(weights, axis) * ratio / LARGEST_RATIO, 1.0)


def layer_factors(rough: Graph, node: Node, weights: Floats) -> NDArray[np.float64]:
    """`delegate_factors` of a float layer, by its grids in the 8-bit graph; ones where it has none."""
    axis = channel_axis(node)
    source, target = (rough.tensors[name].quantization for name in (node.inputs[0], node.output))
    if source is None or target is None:
        return np.ones(weights.shape[axis])
    return delegate_factors(weights, axis, float(source.scale[0]) / float(target.scale[0]))


def per_channel(scales: Floats, axis: int) -> Quantization:
    """Symmetric parameters with one scale per channel of `axis`."""
    return Quantization(scales.astype(np.float32), np.zeros(len(scales), np.int64), axis)


def quantize_weights(weights: Floats, quantization: Quantization) -> NDArray[np.int8]:
    """Weights rounded half to even onto their grid, int8 in [-127, 127], same shape."""
    steps = np.round(weights / along(quantization.scale, weights.ndim, quantization.axis))
    return np.clip(steps, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)


def quantize_bias(bias: Floats, quantization: Quantization) -> NDArray[np.int32]:
    """Bias as int32 at scale `input scale x weight scale`, clipped to the int32 range."""
    steps = np.round(bias.astype(np.float64) / quantization.scale.astype(np.float64))
    limits = np.iinfo(np.int32)
    return np.clip(steps, limits.min, limits.max).astype(np.int32)


def along(values: Floats, rank: int, axis: int | None) -> NDArray[np.float64]:
    """`values`, one per channel, to broadcast against a tensor with its channels on `axis`; float64."""
    shape = [1] * rank
    if axis is not None:
        shape[axis] = -1
    return values.astype(np.float64).reshape(shape)
