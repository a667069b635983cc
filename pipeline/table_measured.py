"""The sections of docs/tables.md that show instruction counts beside Mult-Adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from models.cost import cost_of
from pipeline.markdown import markdown_table
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


def measured_sections(counts: Counts) -> Iterator[str]:
    """Every section that rests on counts, in the page's order; without those that are not counted yet."""
    yield _shares(counts)
    yield _forms(counts)
    yield _micronets(counts)
    names = product(TAKEN_APART[MICRO], PRECISIONS)
    if all(f"{MICRO.name}/{kind}.{precision}" in counts for kind, precision in names):
        yield _taken_apart(counts)
    yield _grouped(counts)


def _shares(counts: Counts) -> str:
    """Of V1: Mult-Adds against instructions, kind by kind."""
    cost = cost_of(WHOLE.model)
    macs = cost.macs_by_kind()
    kinds = {"pointwise": "pointwise", "depthwise": "depthwise", "other_convolutions": "stem"}
    rows = []
    for kind, name in kinds.items():
        cells = [_share(counts, WHOLE, kind, precision) for precision in PRECISIONS]
        rows.append((HEADINGS[kind], f"{100 * macs[name] / cost.macs:.2f}", *cells, ""))
    cells = [_share(counts, WHOLE, "rest", precision) for precision in PRECISIONS]
    rows.append(("classifier, mean, doors", f"{100 * macs['classifier'] / cost.macs:.2f}", *cells, ""))
    text = (
        "The paper says that the network spends 95 % of its Mult-Adds in 1x1 convolutions; on a core they "
        "take a smaller share, because a depthwise convolution does fewer Mult-Adds per instruction. Each "
        "kind of operator was cut out of the exported graph with its shapes and weights into a file of its "
        f"own and counted; the parts sum to {_sum_of_parts(counts, WHOLE)} of the whole "
        f"({', '.join(PRECISIONS)}): in float16 each of them converts its maps from and to float32. Shares "
        "are of the sum of the parts."
    )
    head = ("", "Mult-Adds %", *(f"instructions % {precision}" for precision in PRECISIONS), "")
    return _section("V1 on a core: the share of 1x1 convolutions", text, head, rows)


def _share(counts: Counts, variant: Variant, kind: str, precision: str) -> str:
    """Of the sum of the variant's parts, in percent."""
    found = counts.get(f"{variant.name}/{kind}.{precision}")
    return f"{100 * found / _parts(counts, variant, precision):.1f}" if found else ""


def _parts(counts: Counts, variant: Variant, precision: str) -> int:
    return sum(counts.get(f"{variant.name}/{kind}.{precision}", 0) for kind in TAKEN_APART[variant])


def _sum_of_parts(counts: Counts, variant: Variant) -> str:
    """In percent of the whole, a figure a precision."""
    wholes = {precision: counts.get(f"{variant.name}.{precision}", 0) for precision in PRECISIONS}
    shares = [100 * _parts(counts, variant, name) / max(whole, 1) for name, whole in wholes.items()]
    return " / ".join(f"{share:.1f} %" for share in shares)


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
    return _section("V1 flattened and of low rank", text, head, rows)


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
    return _section("MicroNet on a core", text, head, rows)


def _taken_apart(counts: Counts) -> str:
    rows = []
    for kind in TAKEN_APART[MICRO]:
        found = [counts.get(f"{MICRO.name}/{kind}.{precision}") for precision in PRECISIONS]
        shares = [_share(counts, MICRO, kind, precision) for precision in PRECISIONS]
        cells = [f"{each / MILLION:.2f}" if each else "" for each in found]
        rows.append(
            (HEADINGS[kind], *(cell for pair in zip(cells, shares, strict=True) for cell in pair), "")
        )
    head = ("", *(cell for name in PRECISIONS for cell in (f"{name} M instructions", "%")), "")
    cost = cost_of(MICRO.model, MICRO.alpha, MICRO.resolution)
    pointwise = 100 * cost.macs_by_kind()["pointwise"] / cost.macs
    text = (
        f"Parts as above; they sum to {_sum_of_parts(counts, MICRO)} of the whole ({', '.join(PRECISIONS)}). "
        f"The 1x1 convolutions have {pointwise:.0f} % of the Mult-Adds and {_shares_of(counts, 'pointwise')} "
        f"of the instructions; what a Shift-Max does with maps has {_shares_of(counts, 'element_wise')}."
    )
    return _section(f"Where {MICRO.name} spends them", text, head, rows)


def _shares_of(counts: Counts, kind: str) -> str:
    return " / ".join(f"{_share(counts, MICRO, kind, precision)} %" for precision in PRECISIONS)


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
        "At alpha 1 that is every expansion of M0 to M3. Thousands of instructions:"
    )
    head = (
        "",
        "outputs a group",
        *(cell for name in SHOWN for cell in (f"{name} dense", "grouped", "ratio")),
        "",
    )
    return _section("MicroNet's group convolutions, grouped or dense", text, head, rows)


def _section(title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = markdown_table(head, rows, text_columns=(0, -1))
    return "\n".join((f"## {title}", "", *([text, ""] if text else []), table))
