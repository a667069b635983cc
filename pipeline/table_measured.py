"""The sections of docs/tables.md that show instruction counts beside Mult-Adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from models.cost import cost_of
from pipeline.table_counts import (
    FORM_POINTS,
    FORMS,
    GROUPED,
    MICRO,
    SHOWN,
    SMALL,
    TAKEN_APART,
    WHOLE,
)
from pipeline.table_rows import MILLION
from pipeline.variant import PRECISIONS, Variant

Counts = Mapping[str, int]
HEADINGS = {
    "pointwise": "1x1 convolutions",
    "depthwise": "depthwise convolutions",
    "other_convolutions": "other convolutions",
    "element_wise": "element-wise multiplications and additions of maps",
    "rest": "the rest: means, generators, slices, head, doors",
}


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first and last columns are text, the others numbers."""
    rule = ["---", *("---:" for _ in head[2:]), "---"]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def measured_sections(counts: Counts) -> Iterator[str]:
    """Every section that rests on counts, in the page's order; without those that are not counted yet."""
    yield _shares(counts)
    yield _forms(counts)
    yield _micronets(counts)
    if all(
        f"{MICRO.name}/{kind}.{precision}" in counts for kind in TAKEN_APART[MICRO] for precision in SHOWN
    ):
        yield _taken_apart(counts)
    yield _grouped(counts)


def _shares(counts: Counts) -> str:
    """Of V1: Mult-Adds against instructions, kind by kind."""
    cost = cost_of(WHOLE.model)
    macs = cost.macs_by_kind()
    kinds = {"pointwise": "pointwise", "depthwise": "depthwise", "other_convolutions": "stem"}
    rows = []
    for kind, name in kinds.items():
        cells = [_share(counts, WHOLE, kind, precision) for precision in SHOWN]
        rows.append((HEADINGS[kind], f"{100 * macs[name] / cost.macs:.2f}", *cells, ""))
    cells = [_share(counts, WHOLE, "rest", precision) for precision in SHOWN]
    rows.append(("classifier, mean, doors", f"{100 * macs['classifier'] / cost.macs:.2f}", *cells, ""))
    text = (
        "The paper says that the network spends 95 % of its Mult-Adds in 1x1 convolutions; on a core they "
        "take a smaller share, because a depthwise convolution does fewer Mult-Adds per instruction. Each "
        "kind of operator was cut out of the exported graph with its shapes and weights into a file of its "
        f"own and counted; the parts sum to {_sum_of_parts(counts)} of the whole ({', '.join(SHOWN)})."
    )
    head = ("", "Mult-Adds %", *(f"instructions % {precision}" for precision in SHOWN), "")
    return _section("V1 on a core: the share of 1x1 convolutions", text, markdown(head, rows))


def _share(counts: Counts, variant: Variant, kind: str, precision: str) -> str:
    part, whole = counts.get(f"{variant.name}/{kind}.{precision}"), counts.get(f"{variant.name}.{precision}")
    return f"{100 * part / whole:.1f}" if part and whole else ""


def _sum_of_parts(counts: Counts) -> str:
    shares = []
    for precision in SHOWN:
        names = [f"{WHOLE.name}/{kind}.{precision}" for kind in TAKEN_APART[WHOLE]]
        whole = counts.get(f"{WHOLE.name}.{precision}", 0)
        shares.append(100 * sum(counts.get(name, 0) for name in names) / max(whole, 1))
    return " and ".join(f"{share:.1f} %" for share in shares)


def _forms(counts: Counts) -> str:
    rows = []
    for alpha, resolution in FORM_POINTS:
        base = Variant(FORMS[0], alpha, resolution)
        for form in FORMS:
            variant, cost = Variant(form, alpha, resolution), cost_of(form, alpha, resolution)
            cells = [cell for precision in SHOWN for cell in _against(counts, variant, base, precision)]
            rows.append(
                (variant.name, f"{cost.macs / MILLION:.2f}", f"{cost.params / MILLION:.3f}", *cells, "")
            )
    text = (
        "`v1_flattened` has every 3x3 depthwise convolution as 3x1 and 1x3, `v1_low_rank` every pointwise "
        "one of M to N channels as M to M/4 to N. Flattening saves few Mult-Adds, since V1 has few there, "
        "and in int8 costs instructions: a map is written and read once more. Low rank saves more "
        "Mult-Adds than instructions, and in a narrow int8 network next to none."
    )
    head = (
        "",
        "Mult-Adds M",
        "params M",
        *(cell for name in SHOWN for cell in (f"{name} M instructions", "of v1")),
        "",
    )
    return _section("V1 flattened and of low rank", text, markdown(head, rows))


def _against(counts: Counts, variant: Variant, base: Variant, precision: str) -> tuple[str, str]:
    found, reference = (counts.get(f"{each.name}.{precision}") for each in (variant, base))
    if not found or not reference:
        return "", ""
    return f"{found / MILLION:.2f}", f"{found / reference:.2f}"


def _micronets(counts: Counts) -> str:
    rows = []
    for variant in SMALL:
        cost = cost_of(variant.model, variant.alpha)
        found = [counts.get(f"{variant.name}.{precision}") for precision in PRECISIONS]
        cells = [f"{each / MILLION:.1f}" if each else "" for each in found]
        ratio = f"{found[-1] / cost.macs:.2f}" if found[-1] else ""
        macs, multiplies = cost.macs / MILLION, cost.multiplies / MILLION
        rows.append(
            (variant.name, f"{macs:.1f}", f"{multiplies:.1f}" if multiplies else "", *cells, ratio, "")
        )
    text = (
        "MicroNets are cheap in Mult-Adds, not on a core: compare M2 with V3-Small at alpha 0.35, M3 with "
        "alpha 0.5. In int8 a multiplication or addition of two maps takes some three instructions per "
        "element, and Dynamic Shift-Max with J = K = 2 has seven of them, where a wide dense convolution "
        "does ten Mult-Adds per instruction; and the first rows have too few channels to fill a kernel's "
        "tile. Prefer V3-Small on such a core unless Mult-Adds themselves are what is scarce."
    )
    head = (
        "",
        "Mult-Adds M",
        "Shift-Max multiplies M",
        *(f"{name} M instructions" for name in PRECISIONS),
        "int8 per Mult-Add",
        "",
    )
    return _section("MicroNet on a core", text, markdown(head, rows))


def _taken_apart(counts: Counts) -> str:
    rows = []
    for kind in TAKEN_APART[MICRO]:
        found = [counts.get(f"{MICRO.name}/{kind}.{precision}") for precision in SHOWN]
        shares = [_share(counts, MICRO, kind, precision) for precision in SHOWN]
        cells = [f"{each / MILLION:.2f}" if each else "" for each in found]
        rows.append(
            (HEADINGS[kind], *(cell for pair in zip(cells, shares, strict=True) for cell in pair), "")
        )
    head = ("", *(cell for name in SHOWN for cell in (f"{name} M instructions", "%")), "")
    return _section(f"Where {MICRO.name} spends them", "", markdown(head, rows))


def _grouped(counts: Counts) -> str:
    rows = []
    for conv in GROUPED:
        cells = []
        for precision in SHOWN:
            dense, grouped = (
                counts.get(f"{conv.name}/groups_{groups}.{precision}") for groups in (1, conv.groups)
            )
            cells += [f"{each / 1e3:,.0f}" if each else "" for each in (dense, grouped)]
            cells.append(f"{grouped / dense:.2f}" if dense and grouped else "")
        if not all(cells):
            continue
        label = f"{conv.inputs} to {conv.outputs} in {conv.groups} groups, {conv.size}x{conv.size}"
        rows.append((label, str(conv.outputs // conv.groups), *cells, ""))
    text = (
        "The two shuffled halves of a Micro-Factorized pointwise convolution cannot both keep their groups "
        "without a shuffle between them. The export keeps the groups of the expansion, which has more "
        "outputs per group and more to gain, where a group has 16 outputs or more, and makes squeezes dense. "
        "Of M2 that saves 13 % in float32 and 2 % in int8. Thousands of instructions:"
    )
    head = (
        "",
        "outputs a group",
        *(cell for name in SHOWN for cell in (f"{name} dense", "grouped", "ratio")),
        "",
    )
    return _section("MicroNet's group convolutions, grouped or dense", text, markdown(head, rows))


def _section(title: str, text: str, table: Sequence[str]) -> str:
    return "\n".join((f"## {title}", "", *([text, ""] if text else []), *table))
