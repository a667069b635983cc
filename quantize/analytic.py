"""Means, variances and ranges of every activation from the weights alone, and biases corrected with them.

No image is run: the input's distribution is carried through the float graph, every value taken as normal
before it is bent (arXiv:1906.04721, section 4.2 and appendix C). There it comes from batch norms, which are
folded here; so it is computed, position by position, from the first layer on. Clamps and the larger of two
values have closed forms, other curves are integrated by Gauss-Hermite quadrature, and values of different
channels are taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.special import ndtr

from export.graph import WEIGHTED, Graph, Node, Tensor, channel_axis
from export.run import KERNELS, Kernel
from pipeline.artifacts import AlpharhoError
from quantize.affine import along, layer_factors, quantize_bias
from quantize.lockstep import BOUNDS
from quantize.ranges import ROWS_PER_IMAGE, Observation, Observations

NEAR = 0.95  # correlation of a channel's values a few pixels apart
DEVIATIONS = 6.0  # from the mean to either end of a range, as in arXiv:1906.04721, section 5
NODES = 48  # of the quadrature
POSITIONS = 64  # of a tensor that stand for it in an observation's sample
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Moments:
    """What is expected of a tensor for one image, float64 [1, ...]: mean, variance and range.

    A constant is its own mean, with no variance; integers (axes, sizes) are only carried.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def normal(cls, mean: torch.Tensor, variance: torch.Tensor) -> Moments:
        """Of normal values, which keep within some deviations."""
        reach = DEVIATIONS * variance.sqrt()
        return cls(mean, variance, mean - reach, mean + reach)

    @classmethod
    def constant(cls, tensor: Tensor) -> Moments:
        """Of a constant."""
        assert tensor.data is not None
        floating = np.issubdtype(tensor.dtype, np.floating)
        values = torch.from_numpy(np.array(tensor.real(), np.float64) if floating else np.array(tensor.data))
        return cls(values, torch.zeros_like(values), values, values)

    @property
    def deviation(self) -> torch.Tensor:
        """Square root of the variance."""
        return self.variance.sqrt()

    def within(self, low: torch.Tensor, high: torch.Tensor) -> Moments:
        """The same with a range cut to [low, high]."""
        return replace(self, low=torch.maximum(self.low, low), high=torch.minimum(self.high, high))

    def clamped(self, low: float, high: float) -> Moments:
        """After a clamp, in closed form (clipped normal)."""
        if (low, high) == BOUNDS["NONE"]:
            return self
        deviation = self.deviation.clamp(min=TINY)
        u, v = ((bound - self.mean) / deviation for bound in (low, high))
        below, above = ndtr(u), ndtr(-v)
        inside = 1 - below - above
        first = deviation * (_density(u) - _density(v)) + self.mean * inside
        second = (self.mean.square() + self.variance) * inside
        for bound, at, sign, share in ((low, u, 1, below), (high, v, -1, above)):
            if math.isfinite(bound):
                first = first + bound * share
                second = second + sign * deviation * (self.mean + bound) * _density(at) + bound**2 * share
        variance = (second - first.square()).clamp(min=0)
        return Moments(first, variance, self.low.clamp(low, high), self.high.clamp(low, high))


Operands = Sequence[Moments]
Attributes = Mapping[str, Any]
Rule = Callable[[Kernel, Operands, Attributes], Moments]


def _density(z: torch.Tensor) -> torch.Tensor:
    """Of the standard normal distribution; zero at infinity."""
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


# --- rules: moments of the operands to moments of the result ------------------------------------------------


def _weighted(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """Sums of products: taps of a channel go together as NEAR says, channels do not."""
    x, weights, bias = operands[0], operands[1].mean, operands[2].mean
    nothing = torch.zeros_like(bias)
    mean = kernel([x.mean, weights, bias], attributes)
    variance = kernel([x.variance, weights.square(), nothing], attributes)
    if weights.ndim == 4 and weights.shape[1:3] != (1, 1):
        variance = (1 - NEAR) * variance + NEAR * _together(kernel, x.deviation, weights, nothing, attributes)
    return Moments.normal(mean, variance)


def _together(
    kernel: Kernel,
    deviation: torch.Tensor,
    weights: torch.Tensor,
    nothing: torch.Tensor,
    attributes: Attributes,
) -> torch.Tensor:
    """The variance if all taps of a channel moved as one."""
    if "depth_multiplier" in attributes:
        return kernel([deviation, weights, nothing], attributes).square()
    count = weights.shape[3]  # input channels of a group
    parts = (
        kernel([deviation[..., i::count], weights[..., i : i + 1], nothing], attributes).square()
        for i in range(count)
    )
    return sum(parts, torch.zeros(()))


def _moved(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """Values put elsewhere."""
    return Moments(
        *(
            kernel([part(x) if x.mean.is_floating_point() else x.mean for x in operands], attributes)
            for part in (_mean_of, _variance_of, _low_of, _high_of)
        )
    )


def _mean_of(x: Moments) -> torch.Tensor:
    return x.mean


def _variance_of(x: Moments) -> torch.Tensor:
    return x.variance


def _low_of(x: Moments) -> torch.Tensor:
    return x.low


def _high_of(x: Moments) -> torch.Tensor:
    return x.high


def _averaged(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """Means of some values of a channel, which are not far from each other in half of all cases."""
    x, rest = operands[0], [operand.mean for operand in operands[1:]]
    mean, low, high, apart, together = (
        kernel([values, *rest], attributes) for values in (x.mean, x.low, x.high, x.variance, x.deviation)
    )
    taken = max(1.0, x.mean.numel() / mean.numel())
    variance = NEAR * together.square() + (1 - NEAR) * apart / taken
    return Moments.normal(mean, variance).within(low, high)


def _largest_of_window(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """The largest of a window: a channel's values there share NEAR of their variance."""
    x = operands[0]
    lift = math.sqrt(1 - NEAR) * _expected_largest(attributes["filter_height"] * attributes["filter_width"])
    mean, variance, low, high = (
        kernel([values], attributes) for values in (x.mean + lift * x.deviation, x.variance, x.low, x.high)
    )
    return Moments(torch.minimum(mean, high), variance, low, high)


def _expected_largest(count: int) -> float:
    """Of `count` independent standard normal values: the integral of x over the `count`-th power of Phi."""
    x = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    steps = (ndtr(x) ** count).diff()
    return float((steps * (x[1:] + x[:-1]) / 2).sum())


def _summed(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """Sum or difference of independent values."""
    first, second = operands
    mean = kernel([first.mean, second.mean], attributes)
    return Moments.normal(mean, (first.variance + second.variance).expand(mean.shape))


def _multiplied(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """Product of independent values."""
    first, second = operands
    mean = kernel([first.mean, second.mean], attributes)
    squares = first.mean.square() * second.variance + second.mean.square() * first.variance
    corners = torch.stack([a * b for a in (first.low, first.high) for b in (second.low, second.high)])
    found = Moments.normal(mean, squares + first.variance * second.variance)
    return found.within(corners.amin(0), corners.amax(0))


def _of_matrices(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """Sums of products of independent values."""
    first, second = operands
    mean = kernel([first.mean, second.mean], attributes)
    pairs = (
        (first.variance, second.mean.square()),
        (first.mean.square(), second.variance),
        (first.variance, second.variance),
    )
    return Moments.normal(mean, sum((kernel([*pair], attributes) for pair in pairs), torch.zeros(())))


def _divided(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """Ratio, to the first order in the divisor."""
    first, second = operands
    mean = kernel([first.mean, second.mean], attributes)
    variance = (first.variance + mean.square() * second.variance) / second.mean.square()
    return Moments.normal(mean, variance)


def _larger(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """The larger of two independent values in closed form (Clark 1961); of a constant, it is a clamp."""
    first, second = operands
    spread = (first.variance + second.variance).sqrt().clamp(min=TINY)
    at = (first.mean - second.mean) / spread
    share = ndtr(at)
    mean = first.mean * share + second.mean * (1 - share) + spread * _density(at)
    square = (
        (first.mean.square() + first.variance) * share
        + (second.mean.square() + second.variance) * (1 - share)
        + (first.mean + second.mean) * spread * _density(at)
    )
    low, high = (kernel([part(first), part(second)], attributes) for part in (_low_of, _high_of))
    return Moments(mean, (square - mean.square()).clamp(min=0), low, high)


def _smaller(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """The smaller of two, as the larger of their opposites."""
    return _opposite(_larger(KERNELS["MAXIMUM"], [_opposite(x) for x in operands], attributes))


def _opposite(x: Moments) -> Moments:
    return Moments(-x.mean, x.variance, -x.high, -x.low)


def _bent(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """A curve, by quadrature; its range is that of the points from end to end."""
    x, rest = operands[0], [operand.mean for operand in operands[1:]]
    points, weights = np.polynomial.hermite_e.hermegauss(NODES)
    shares = weights / weights.sum()
    mean, square = torch.zeros_like(x.mean), torch.zeros_like(x.mean)
    for point, share in zip(points.tolist(), shares.tolist(), strict=True):
        values = kernel([x.mean + point * x.deviation, *rest], attributes)
        mean, square = mean + share * values, square + share * values.square()
    low, high = mean, mean
    for part in np.linspace(0, 1, NODES).tolist():
        values = kernel([torch.lerp(x.low, x.high, part), *rest], attributes)
        low, high = torch.minimum(low, values), torch.maximum(high, values)
    return Moments(mean, (square - mean.square()).clamp(min=0), low, high)


def _same(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """The clamp that follows does all."""
    return operands[0]


def _of_the_mean(kernel: Kernel, operands: Operands, attributes: Attributes) -> Moments:
    """Shares of a whole: those of the mean, and anything from 0 to 1."""
    mean = kernel([operands[0].mean], attributes)
    return Moments(mean, torch.zeros_like(mean), torch.zeros_like(mean), torch.ones_like(mean))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(WEIGHTED, _weighted),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MEAN", "RESIZE_BILINEAR"), _averaged),
    **dict.fromkeys(("CONCATENATION", "PAD", "RESHAPE", "RESIZE_NEAREST_NEIGHBOR"), _moved),
    **dict.fromkeys(("SLICE", "STRIDED_SLICE", "TRANSPOSE"), _moved),
    **dict.fromkeys(("ADD", "SUB"), _summed),
    **dict.fromkeys(("HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "PRELU", "TANH"), _bent),
    **dict.fromkeys(("RELU", "RELU6"), _same),
    "BATCH_MATMUL": _of_matrices,
    "DIV": _divided,
    "MAXIMUM": _larger,
    "MAX_POOL_2D": _largest_of_window,
    "MINIMUM": _smaller,
    "MUL": _multiplied,
    "SOFTMAX": _of_the_mean,
}


# --- over the graph -----------------------------------------------------------------------------------------


def moments_of(graph: Graph, door: Observation) -> dict[str, Moments]:
    """Moments of the input and of every computed tensor of a float graph, by tensor name.

    `door` says what the input is like, per channel: the mean, variance and range of its sample. AlpharhoError
    for an operator without a rule.
    """
    if unknown := sorted({node.op for node in graph.nodes} - set(RULES)):
        raise AlpharhoError(
            f"nothing can be expected of {', '.join(unknown)} without images; quantise with some, "
            "or with --recipe int8_data_free"
        )
    shape = graph.tensors[graph.inputs[0]].shape
    mean, variance, low, high = (
        torch.from_numpy(np.array(np.broadcast_to(values.astype(np.float64), shape)))
        for values in (door.rows.mean(0), door.rows.var(0), door.low, door.high)
    )
    found = {graph.inputs[0]: Moments(mean, variance, low, high)}
    constants = {
        name: Moments.constant(tensor) for name, tensor in graph.tensors.items() if tensor.data is not None
    }
    for node in graph.nodes:
        operands = [found[name] if name in found else constants[name] for name in node.inputs if name]
        plain = RULES[node.op](KERNELS[node.op], operands, node.attributes)
        found[node.output] = plain.clamped(*BOUNDS[_clamp_of(node)])
    return found


def _clamp_of(node: Node) -> str:
    own = node.op if node.op in BOUNDS else "NONE"
    return str(node.attributes.get("fused_activation_function", own))


def expected(graph: Graph, seen: Observations) -> dict[str, Observation]:
    """An Observation of every tensor as it is expected, of which only the input's was seen."""
    door = seen[graph.inputs[0]]
    found = {name: _observed(moments) for name, moments in moments_of(graph, door).items()}
    return {**found, graph.inputs[0]: door}


def _observed(found: Moments) -> Observation:
    """Extremes per channel of the last axis, and quantiles of the normal distribution as a sample."""
    mean, deviation, low, high = (
        values.reshape(-1, values.shape[-1])
        for values in (found.mean, found.deviation, found.low, found.high)
    )
    shares = (torch.arange(ROWS_PER_IMAGE, dtype=torch.float64) + 0.5) / ROWS_PER_IMAGE
    chosen = torch.linspace(0, len(mean) - 1, min(len(mean), POSITIONS)).round().long()
    points = torch.special.ndtri(shares)[:, None, None]
    rows = (mean[chosen] + points * deviation[chosen]).clamp(low[chosen], high[chosen]).flatten(0, 1)
    return Observation(low.amin(0).numpy(), high.amax(0).numpy(), rows.numpy().astype(np.float32))


def analytically_corrected(exact: Graph, rough: Graph, seen: Observations) -> Graph:
    """`rough`, the 8-bit form of `exact`, less what rounding its weights adds to every channel's mean.

    bias -= (rounded weights - weights) E[x], with E[x] from the distribution of the input in `seen`.
    """
    found = moments_of(exact, seen[exact.inputs[0]])
    twins = {node.inputs[1]: node for node in exact.nodes if node.op in WEIGHTED}
    readers = rough.consumers()
    biases = {}
    for node in rough.nodes:
        if node.op not in WEIGHTED or rough.tensors[node.inputs[1]].quantization is None:
            continue
        twin, bias = twins[node.inputs[1]], rough.tensors[node.inputs[2]]
        if len(readers[node.inputs[2]]) > 1:
            continue  # a bias that layers share cannot take the shift of one
        real = bias.real() - _shift(exact, rough, node, found[twin.inputs[0]].mean)
        grid = bias.quantization
        stored = real.astype(np.float32) if grid is None else quantize_bias(real, grid)
        biases[node.inputs[2]] = Tensor.constant(stored, grid)
    return rough.with_nodes(rough.nodes, biases)


def _shift(
    exact: Graph, rough: Graph, node: Node, mean: torch.Tensor
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the rounding of the node's weights adds to the mean of its channels, float64 [channels]."""
    weights = exact.tensors[node.inputs[1]].real().astype(np.float64)
    axis = channel_axis(node)
    weights = weights * along(layer_factors(rough, node, weights), weights.ndim, axis)
    error = torch.from_numpy(rough.tensors[node.inputs[1]].real().astype(np.float64) - weights)
    nothing = torch.zeros(weights.shape[axis], dtype=torch.float64)
    added = KERNELS[node.op]([mean, error, nothing], node.attributes)
    return np.asarray(added.reshape(-1, added.shape[-1]).mean(0).numpy())
