"""The op budget of a variant: how often each operator must occur in its files, whatever the precision."""

from __future__ import annotations

from export.builder import MOST_JOINED
from models.op_counts import deployed_ops, joined_parts, op_counts
from pipeline.variant import Variant


def op_budget(variant: Variant, padding: str) -> dict[str, int]:
    """How often each operator must occur in any exported file of the variant, from the model's table."""
    expected = op_counts(variant.model, variant.alpha)
    budget = {
        "CONV_2D": expected.dense_convs + 2 * expected.squeeze_excites,
        "DEPTHWISE_CONV_2D": expected.depthwise_convs,
        "FULLY_CONNECTED": expected.fully_connected,
        "ADD": expected.residual_adds,
        "MUL": expected.squeeze_excites,
        "MEAN": expected.squeeze_excites + 1,
        "HARD_SWISH": expected.hard_swishes,
        "TRANSPOSE": 0,
        "RESHAPE": 0,
    }
    for op, count in deployed_ops(variant.model, variant.alpha).items():
        budget[op] = budget.get(op, 0) + count
    if joined := joined_parts(variant.model, variant.alpha):
        budget["CONCATENATION"] = sum(map(_joins, joined))
    return {**budget, "PAD": 0} if padding == "tf" else budget


def _joins(parts: int) -> int:
    """How many CONCATENATIONs join so many parts."""
    if parts <= MOST_JOINED:
        return 1
    full, rest = divmod(parts, MOST_JOINED)
    return full + (rest > 1) + _joins(full + (rest > 0))
