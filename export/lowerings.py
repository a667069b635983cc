"""How every supported ONNX operator is lowered, in the order of the ONNX operator list.

The families stand in `lower_elementwise`, `lower_shapes`, `lower_sums`, `lower_windows` and `resize`.
"""

from __future__ import annotations

from export import lower_elementwise, lower_shapes, lower_sums, lower_windows, resize
from export.registry import Rule

FAMILIES = (lower_elementwise.RULES, lower_shapes.RULES, lower_sums.RULES, lower_windows.RULES, resize.RULES)
LOWERINGS: dict[str, Rule] = dict(sorted((op, rule) for family in FAMILIES for op, rule in family.items()))

assert len(LOWERINGS) == sum(map(len, FAMILIES)), "an operator is lowered twice"
