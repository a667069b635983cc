"""What a command says of where it is, beside its result."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A line on the error stream at once, so that the output holds nothing but the result."""
    print(text, file=sys.stderr, flush=True)
