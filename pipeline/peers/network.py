"""The module that every converter of PyTorch modules starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
from models.weights import load_weights


def load_network(request: Mapping[str, Any]) -> models.MobileNet:
    """The network of `request["model"]` with the weights of `request["weights"]`, ready for inference."""
    module = models.build(request["model"], num_classes=request["classes"], padding=request["padding"])
    load_weights(module, Path(request["weights"]))
    return module.eval()
