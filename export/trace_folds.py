"""What the convolutions of a trace can do themselves: batch norms after them, padding before them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from export.trace import Call, Constant, Trace, Value


def folded(trace: Trace) -> Trace:
    """The same results: a batch norm is in the weights of the convolution before it, zeros in its padding.

    Weights are multiplied in float64 and stored in float32. A map that something else reads too stays.
    """
    readers = Counter(id(value) for call in trace.calls for value in call.inputs)
    readers.update(map(id, trace.results))
    kept: dict[int, Call] = {}
    for call in trace.calls:
        before = kept.get(id(call.inputs[0])) if readers[id(call.inputs[0])] == 1 else None
        merged = _merged(before, call) if before is not None else None
        if before is not None and merged is not None:
            del kept[id(before.result)]
        kept[id(call.result)] = merged or call
    return replace(trace, calls=tuple(kept.values()))


def _merged(before: Call, call: Call) -> Call | None:
    """Both as one convolution, or None where they are not one."""
    if (before.op, call.op) == ("Conv", "BatchNormalization"):
        return _with_norm(before, call)
    if (before.op, call.op) == ("Pad", "Conv"):
        return _with_padding(before, call)
    return None


def _with_norm(conv: Call, norm: Call) -> Call | None:
    source, *weights = conv.inputs
    constants = [value for value in weights if isinstance(value, Constant)]
    if len(constants) < len(weights):
        return None
    weight, *bias = map(_float64, constants)
    gain, offset, mean, variance = (_float64(value) for value in norm.inputs[1:])
    factor = gain / np.sqrt(variance + norm.attributes["epsilon"])
    scaled = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    shifted = (sum(bias, -mean)) * factor + offset
    name = constants[0].name
    inputs = (Constant(scaled.astype(np.float32), name), Constant(shifted.astype(np.float32), _bias_of(name)))
    return replace(conv, inputs=(source, *inputs), result=norm.result)


def _bias_of(weight: str) -> str:
    """The name of the bias that a convolution gets with its batch norm: `features.0.conv.bias`."""
    owner, _, _ = weight.rpartition(".")
    return f"{owner}.bias" if owner else ""


def _float64(value: Value) -> NDArray[np.float64]:
    assert isinstance(value, Constant), "a batch norm's parameters are weights"
    return value.data.astype(np.float64)


def _with_padding(pad: Call, conv: Call) -> Call | None:
    source, amounts, value = pad.inputs
    assert isinstance(amounts, Constant) and isinstance(value, Constant)
    before, after = amounts.data.reshape(2, -1)
    if value.data != 0 or (amounts.data < 0).any() or before[:2].any() or after[:2].any():
        return None
    added = np.concatenate([before[2:], after[2:]]) + conv.attributes["pads"]
    attributes = {**conv.attributes, "pads": added.tolist()}
    return replace(conv, inputs=(source, *conv.inputs[1:]), attributes=attributes)
