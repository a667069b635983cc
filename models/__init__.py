"""What the network is: one file per paper, its tables row for row."""

from models.blocks import PADDINGS, MobileNet, Network
from models.deploy import deployed
from models.heads import HEADED, backbone_of, build_headed
from models.registry import MAX_ALPHA, MODELS, NAMES, build, check_resolution, network

__all__ = [
    "HEADED",
    "MAX_ALPHA",
    "MODELS",
    "NAMES",
    "PADDINGS",
    "MobileNet",
    "Network",
    "backbone_of",
    "build",
    "build_headed",
    "check_resolution",
    "deployed",
    "network",
]
