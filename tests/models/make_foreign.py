"""Writes `data/foreign_*.csv` and `data/foreign_logits.json` from the projects' own networks.

In an environment of its own, from the top of the repository:

    python3.11 -m venv /tmp/timm && /tmp/timm/bin/pip install timm==1.0.31 safetensors
    /tmp/timm/bin/python -m tests.models.make_foreign

Networks that cannot be made there are left as they are in the files: those of MicroNet's authors have no
package. Theirs were written by this code with a module of the name `micronet_authors` on the path, whose
`build(name, classes)` gives the network of github.com/liyunsheng13/micronet at ed89b26.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.models.foreign_state import CLASSES, FOREIGN, drawn, images

DATA = Path(__file__).parent / "data"
COUNTER = "num_batches_tracked"
Shapes = dict[str, tuple[int, ...]]


def makers() -> dict[str, Callable[[str], nn.Module]]:
    """Start of a table's name to the maker of its networks, of those whose packages are there."""
    found: dict[str, Callable[[str], nn.Module]] = {}
    if importlib.util.find_spec("timm"):
        timm = importlib.import_module("timm")
        found["timm"] = lambda name: timm.create_model(name, num_classes=CLASSES)
    if importlib.util.find_spec("micronet_authors"):
        authors = importlib.import_module("micronet_authors")
        found["micronet"] = lambda name: authors.build(name, CLASSES)
    return found


def answers(module: nn.Module, shapes: Shapes) -> list[list[float]]:
    """The network's logits of the images with the drawn values, computed in float64."""
    module.load_state_dict(drawn(shapes), strict=False)
    module = module.double().eval()
    with torch.no_grad():
        logits = [module(image.double())[0].tolist() for image in images()]
    return [[float(f"{value:.8g}") for value in row] for row in logits]


def write_table(table: str, found: dict[str, Shapes]) -> None:
    """One row per key, one column per network, `-` where a network does not have the key."""
    keys = list(dict.fromkeys(key for shapes in found.values() for key in shapes))
    lines = [f"# keys and shapes of state_dict with {CLASSES} classes", ",".join(["key", *found])]
    for key in keys:
        shapes = ("x".join(map(str, shapes[key])) if key in shapes else "-" for shapes in found.values())
        lines.append(",".join([key, *shapes]))
    (DATA / f"foreign_{table}.csv").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Write what the packages that are there can tell."""
    path = DATA / "foreign_logits.json"
    logits = json.loads(path.read_text()) if path.exists() else {}
    tables: dict[str, dict[str, Shapes]] = {}
    available = makers()
    for name, foreign in FOREIGN.items():
        make = available.get(foreign.table.split("_")[0])
        if make is None:
            continue
        module = make(name)
        state = {key: value for key, value in module.state_dict().items() if not key.endswith(COUNTER)}
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        tables.setdefault(foreign.table, {})[name] = shapes
        logits[name] = answers(module, shapes)
    for table, found in tables.items():
        write_table(table, found)
    path.write_text(json.dumps(dict(sorted(logits.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
