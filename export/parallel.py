"""Where and in how many threads graphs run: images side by side, instead of every operation on all cores.

Threads that share an operation wait for each other after each, which on a busy machine takes many times the
operation itself. Threads that have images of their own do not wait, and maps of a few images stay in a core's
cache.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")

Parameters = ParamSpec("Parameters")

PIXELS = 250_000  # of the images that one thread runs at once; the same everywhere, so that results are


def chosen_device() -> torch.device:
    """Where graphs run unless told otherwise: on a GPU when PyTorch has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Convolutions in float32 where a GPU would round their operands to 10 bits."""
    if device.type == "cpu":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def pieces(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The images, a few at a time: five of 224 x 224."""
    together = max(1, round(PIXELS / math.prod(images.shape[1:3])))
    return [images[first : first + together] for first in range(0, len(images), together)]


def without_gradients(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`function` in PyTorch's inference mode, which every thread must enter by itself."""

    @wraps(function)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with torch.inference_mode():
            return function(*args, **kwargs)

    return run


@contextmanager
def workers(device: torch.device) -> Iterator[Executor]:
    """As many threads as PyTorch was given, and PyTorch on one core in each; one thread for a GPU."""
    given = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with full_precision(device), ThreadPoolExecutor(given if device.type == "cpu" else 1) as pool:
            yield pool
    finally:
        torch.set_num_threads(given)


def ahead(compute: Callable[[Item], Result], items: Sequence[Item]) -> Generator[Result, None, None]:
    """`compute` of every item in turn, on a thread that does not wait for the caller to take the results."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(compute, item) for item in items)
        try:
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
