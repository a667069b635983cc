"""One network at one width and one resolution, and the name by which everything about it is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import models
from pipeline.artifacts import AlpharhoError

BUILD = Path("build")
PRECISIONS = ("float32", "float16", "int8")
IMAGENET_CLASSES = 1000
IMAGENET_RESOLUTION = 224


@dataclass(frozen=True, slots=True)
class Variant:
    """A model of the registry, or one with a head, at width `alpha` on `resolution` x `resolution` images."""

    model: str
    alpha: float
    resolution: int

    @classmethod
    def of(cls, model: str, alpha: float, rho: float, base_resolution: int) -> Variant:
        """The variant at resolution multiplier `rho`; AlpharhoError for what cannot be built."""
        backbone = models.backbone_of(model)
        models.network(backbone, alpha)
        if not rho > 0:
            raise AlpharhoError(
                f"rho is {rho}; choose a resolution multiplier above 0, 1 is the data set's own"
            )
        resolution = round(rho * base_resolution)
        models.check_resolution(backbone, resolution)
        return cls(model, alpha, resolution)

    @property
    def name(self) -> str:
        """`v3_small_1.00_56`: two decimals of alpha, more where two would not tell it exactly."""
        alpha = f"{self.alpha:.2f}"
        return f"{self.model}_{alpha if float(alpha) == self.alpha else self.alpha}_{self.resolution}"
