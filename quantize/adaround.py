"""Rounding learnt by gradient descent: AdaRound (arXiv:2004.10568), for layers with few weights a result."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from tqdm import tqdm

from quantize.affine import WEIGHT_MAX
from quantize.lockstep import SEED, Layer

LEARNT = frozenset({"DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
LOW, HIGH = -0.1, 1.1  # the rectified sigmoid's ends before it is clamped (equation 23)
ITERATIONS, WARM_UP, ROWS, RATE = 400, 0.2, 256, 0.02
FIRST_BETA, LAST_BETA, PULL = 20.0, 2.0, 0.05  # of the regulariser that makes every part 0 or 1 (equation 24)
HELD_OUT = 4  # one image in so many, the last ones, judges


@dataclass(slots=True)
class LearntRounding:
    """A layer treatment that learns the rounding of depthwise and fully connected layers until time is up.

    It minimises the squared error after the activation, over up or down for every weight, and keeps a
    channel's new rounding only where the held-out images, which it never learns from, say that it is closer
    to the float model. Deterministic as long as `budget_s` seconds are enough; a layer for which they are not
    keeps its rounding. `outcomes` counts the channels and layers.
    """

    budget_s: float
    outcomes: Counter[str] = field(default_factory=Counter)
    spent_s: float = 0.0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(SEED))

    def __call__(self, layer: Layer) -> Layer:
        """The layer with whichever rounding is better, channel by channel."""
        if layer.op not in LEARNT:
            return layer
        started = time.monotonic()
        with torch.inference_mode(False), torch.enable_grad():
            steps = self._learnt(layer, started + self.budget_s - self.spent_s)
        self.spent_s += time.monotonic() - started
        if steps is None:
            self.outcomes["layers_out_of_time"] += 1
            return layer
        return self._judged(layer, steps)

    def told(self) -> dict[str, object]:
        """What came of it, as JSON values."""
        return {**self.outcomes, "spent_s": round(self.spent_s, 1)}

    def _learnt(self, layer: Layer, deadline: float) -> torch.Tensor | None:
        """The learnt steps [G, O, K], or None when time was up."""
        lesson = _Lesson.of(layer)
        part = (layer.weights / layer.scales[..., None]).clone() - lesson.whole
        free = torch.logit((part - LOW) / (HIGH - LOW)).requires_grad_()
        optimizer = torch.optim.Adam([free], lr=RATE)
        for i in tqdm(range(ITERATIONS), desc=layer.name, leave=False, disable=None):
            if time.monotonic() > deadline:
                return None
            rows = torch.randint(lesson.inputs.shape[1], (ROWS,), generator=self.generator)
            rows = rows.to(free.device)
            up = (torch.sigmoid(free) * (HIGH - LOW) + LOW).clamp(0, 1)
            optimizer.zero_grad()
            (lesson.error(up, rows) + _undecided(up, i / ITERATIONS)).backward()  # type: ignore[no-untyped-call]  # torch has no type for it
            optimizer.step()
        return (lesson.whole + (free.detach() > 0)).clamp(-WEIGHT_MAX, WEIGHT_MAX)

    def _judged(self, layer: Layer, steps: torch.Tensor) -> Layer:
        first = _first_held_out(layer)
        old, new = (_errors(replace(layer, steps=tried), first) for tried in (layer.steps, steps))
        wins = new < old
        self.outcomes["layers"] += 1
        self.outcomes["channels_learnt"] += int(wins.sum())
        self.outcomes["channels_kept"] += int((~wins).sum())
        return replace(layer, steps=torch.where(wins[..., None], steps, layer.steps))


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What is learnt from: rows of inputs and wanted results, each channel's error in parts of its first."""

    layer: Layer
    inputs: torch.Tensor
    wanted: torch.Tensor
    whole: torch.Tensor
    bias: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, layer: Layer) -> _Lesson:
        end = _first_held_out(layer)
        bias = layer.bias + (layer.targets - layer.found()).mean(1)
        errors = _errors(layer, 0)
        return cls(
            layer,
            layer.inputs[:, :end].clone(),
            layer.clamped(layer.targets[:, :end]).clone(),
            torch.floor(layer.weights / layer.scales[..., None]).clone(),
            bias[:, None].clone(),
            1 / errors.clamp(min=float(errors.max()) * 1e-6 + 1e-20),
        )

    def error(self, up: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Mean over the channels on `rows`, for weights rounded up by the parts `up`."""
        weights = (self.whole + up) * self.layer.scales[..., None].clone()
        sums = torch.baddbmm(self.bias, self.inputs[:, rows], weights.transpose(1, 2))
        squared = (self.layer.clamped(sums) - self.wanted[:, rows]).square().mean(1)
        return (squared * self.weight.clone()).sum()


def _undecided(up: torch.Tensor, progress: float) -> torch.Tensor:
    if progress < WARM_UP:
        return up.new_zeros(())
    beta = FIRST_BETA + (LAST_BETA - FIRST_BETA) * (progress - WARM_UP) / (1 - WARM_UP)
    return PULL * (1 - (2 * up - 1).abs().pow(beta)).sum()


def _first_held_out(layer: Layer) -> int:
    rows = layer.inputs.shape[1]
    return max(1, rows - rows // HELD_OUT)


def _errors(layer: Layer, start: int) -> torch.Tensor:
    """Squared error of each channel after the activation, rows from `start`, its bias put right; [G, O]."""
    sums, targets = layer.found()[:, start:], layer.targets[:, start:]
    sums = sums + (targets - sums).mean(1, keepdim=True)
    return (layer.clamped(sums) - layer.clamped(targets)).square().mean(1)
