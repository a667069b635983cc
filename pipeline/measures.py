"""How close one network's logits are to another's, and the float32 logits that all others are held to."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from export.runtime import Logits, Predictor, load_onnx_predictor
from pipeline.artifacts import write_array, write_bytes
from pipeline.data import Images, normalise
from pipeline.evaluate import batched, softmax
from pipeline.photographs import FOLDER

CONFIDENT = 0.5  # softmax of the float network's first class


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How close logits are to the float reference's; shares in percent, KL in nats, SQNR in dB.

    `confident_agreement` is None where the reference is sure of no image.
    """

    crops: int
    confident_crops: int
    agreement: float
    confident_agreement: float | None
    top5_overlap: float
    kl: float
    sqnr_db: float


def compare(logits: Logits, reference: Logits) -> Quality:
    """The figures of one split; both [N, classes]."""
    expected, found = (softmax(values.astype(np.float64)) for values in (reference, logits))
    same = logits.argmax(1) == reference.argmax(1)
    confident = expected.max(1) > CONFIDENT
    top5, reference_top5 = (np.argsort(-values, axis=1)[:, :5] for values in (logits, reference))
    overlap = [len(set(a) & set(b)) / 5 for a, b in zip(top5.tolist(), reference_top5.tolist(), strict=True)]
    divergence = (expected * (np.log(expected + 1e-12) - np.log(found + 1e-12))).sum(1)
    return Quality(
        crops=len(same),
        confident_crops=int(confident.sum()),
        agreement=100 * float(same.mean()),
        confident_agreement=100 * float(same[confident].mean()) if confident.any() else None,
        top5_overlap=100 * float(np.mean(overlap)),
        kl=float(divergence.mean()),
        sqnr_db=sqnr_db(logits, reference),
    )


def sqnr_db(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Energy of the reference over energy of the difference, in dB; infinite where there is no difference."""
    noise = float(np.square(found.astype(np.float64) - reference).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 10 * float(np.log10(signal / noise)) if noise > 0 else float("inf")


def reference_logits(model: onnx.ModelProto, images: Images, folder: Path = FOLDER) -> Logits:
    """ONNX Runtime's float32 logits of `images`; remembered in `folder` by model and images."""
    content = model.SerializeToString()
    key = sha256(content + images.tobytes()).hexdigest()[:16]
    remembered = folder / "reference" / f"{key}.npy"
    if not remembered.is_file():
        path = folder / "reference" / "model.onnx"
        write_bytes(path, content)
        write_array(remembered, in_batches(load_onnx_predictor(path, normalise), images))
    return np.asarray(np.load(remembered, allow_pickle=False), np.float32)


def in_batches(predictor: Predictor, images: Images) -> Logits:
    """Logits of all uint8 NHWC images, some at a time, so that only those are held as floats."""
    return np.concatenate([predictor(some) for some in batched(images)])
