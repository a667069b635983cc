"""The readable summary of an export: one row a stage."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.manifest import Manifest

STAGES = ("pytorch", "onnx", "float32", "float16", "int8")
HEADER = (
    "stage",
    "top-1 %",
    "top-5 %",
    "agrees with float32 %",
    "size kB",
    "max diff / range",
    "partitions",
    "seconds",
)


def summary(manifest: Manifest) -> str:
    """Title and table of stage x (accuracy, agreement, size, parity, partitions, time) for a terminal."""
    accuracy = next(iter(manifest.accuracy.values()), None)
    measured = (
        "accuracy not measured, the pictures have no labels"
        if accuracy is None
        else f"accuracy on {accuracy.samples:,} test images of {manifest.dataset}"
    )
    title = (
        f"{manifest.variant}: {manifest.model}, alpha {manifest.alpha:g}, rho {manifest.rho:g}, "
        f"{manifest.macs / 1e6:.2f} M Mult-Adds, {manifest.params / 1e6:.3f} M parameters; "
        f"{measured}"
    )
    return f"{title}\n{aligned([HEADER, *(_row(manifest, stage) for stage in STAGES)])}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs)
        )
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _row(manifest: Manifest, stage: str) -> tuple[str, ...]:
    accuracy, artifact = manifest.accuracy.get(stage), manifest.artifacts.get(stage)
    parity, delegate = manifest.parity.get(stage), manifest.delegate.get(stage)
    agreement = manifest.agreement.get(stage)
    return (
        stage,
        "" if accuracy is None else f"{accuracy.top1:.2f}",
        "" if accuracy is None else f"{accuracy.top5:.2f}",
        "" if agreement is None else f"{agreement:.2f}",
        "" if artifact is None else f"{artifact.bytes / 1000:,.1f}",
        "" if parity is None else f"{parity.max_abs_diff / parity.logit_range:.1e}",
        "" if delegate is None else str(delegate.partitions),
        "" if artifact is None else f"{artifact.seconds:.2f}",
    )
