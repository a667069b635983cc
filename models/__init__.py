"""What the network is: one file per paper, its tables row for row."""

from models.blocks import PADDINGS, MobileNet, Network
from models.deploy import deployed
from models.registry import MAX_ALPHA, MODELS, NAMES, build, check_resolution, network

__all__ = [
    "MAX_ALPHA",
    "MODELS",
    "NAMES",
    "PADDINGS",
    "MobileNet",
    "Network",
    "build",
    "check_resolution",
    "deployed",
    "network",
]
