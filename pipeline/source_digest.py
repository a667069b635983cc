"""Whether a figure that was kept is one of the code as it is now."""

from __future__ import annotations

import ast
from functools import cache
from hashlib import sha256

from pipeline.data import REPOSITORY

CONVERTING = ("quantize", "export")  # the folders whose code decides what a converted file holds


@cache
def source_digest(folders: tuple[str, ...] = CONVERTING) -> str:
    """A digest of the code in these folders, which comments and layout leave as it is."""
    sources = [path for folder in folders for path in sorted((REPOSITORY / folder).glob("*.py"))]
    trees = (ast.dump(ast.parse(path.read_text())) for path in sources)
    return sha256("".join(trees).encode()).hexdigest()
