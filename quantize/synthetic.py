"""Calibration images from nothing: pictures with the statistics of photographs, when there are none.

A picture is painted as "dead leaves" (Lee, Mumford, Huang 2001): opaque shapes of all sizes, the number of
size r falling as r^-3, hide each other. That gives the edges, flat regions and 1/f^2 spectrum of photographs,
which networks trained on them expect; plain noise does not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEED = 20010101  # of every picture painted
SHAPES = 120  # on one picture
SMALLEST, LARGEST = 0.02, 0.7  # radius of a shape, of the picture's side
GRAIN = 0.04  # largest deviation of a shape's texture, of the whole range of values

Floats = NDArray[np.float32]


def generated(count: int, shape: tuple[int, ...], low: float, high: float) -> Floats:
    """`count` pictures, float32 [count, H, W, C] with values in [low, high], for a model input of `shape`.

    The same arguments give the same pictures. A shape that is not an image's is filled with uniform noise.
    """
    random = np.random.default_rng(SEED)
    if len(shape) != 4:
        return random.uniform(low, high, (count, *shape[1:])).astype(np.float32)
    pictures = np.stack([_painted(shape[1], shape[2], shape[3], random) for _ in range(count)])
    return (low + pictures * (high - low)).astype(np.float32)


def _painted(height: int, width: int, channels: int, random: np.random.Generator) -> Floats:
    """One picture [H, W, C], values in [0, 1]."""
    ground = random.uniform(0, 1, channels)
    palette = np.clip(ground + random.normal(0, 0.35, (6, channels)), 0, 1)  # few colours, as one scene has
    picture = np.broadcast_to(palette[0], (height, width, channels)).astype(np.float32)
    for radius in np.sort(_radii(random))[::-1]:
        _paint(picture, float(radius) * min(height, width), palette, random)
    exposure = random.uniform(0.6, 1.5)
    return np.asarray(np.clip(picture, 0, 1) ** exposure, np.float32)


def _radii(random: np.random.Generator) -> NDArray[np.float64]:
    """Radii with density r^-3 between SMALLEST and LARGEST."""
    parts = random.uniform(0, 1, SHAPES)
    return np.asarray((SMALLEST**-2 + parts * (LARGEST**-2 - SMALLEST**-2)) ** -0.5)


def _paint(picture: Floats, radius: float, palette: NDArray[np.float64], random: np.random.Generator) -> None:
    """An ellipse of a palette's colour, shaded from one side to the other and grained, over the picture."""
    height, width, channels = picture.shape
    y, x = random.uniform(0, height), random.uniform(0, width)
    long, short = radius, radius * random.uniform(0.3, 1.0)
    rows = np.arange(max(0, int(y - long)), min(height, int(y + long) + 1))[:, None] - y
    columns = np.arange(max(0, int(x - long)), min(width, int(x + long) + 1))[None] - x
    angle = random.uniform(0, np.pi)
    along = np.cos(angle) * rows + np.sin(angle) * columns
    across = np.cos(angle) * columns - np.sin(angle) * rows
    inside = (along / max(long, 1)) ** 2 + (across / max(short, 1)) ** 2 <= 1
    colour = np.clip(palette[random.integers(len(palette))] + random.normal(0, 0.1, channels), 0, 1)
    shade = random.normal(0, 0.15) * along / max(long, 1)
    grain = random.normal(0, random.uniform(0, GRAIN), inside.shape)
    top, left = (round(float(part.flat[0]) + at) for part, at in ((rows, y), (columns, x)))
    window = picture[top : top + inside.shape[0], left : left + inside.shape[1]]
    window[inside] = (colour + (shade + grain)[..., None])[inside]
