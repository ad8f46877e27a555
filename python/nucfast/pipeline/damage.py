"""What of a slide cannot be read: rectangles (x, y, width, height) in level-0 pixels."""

from __future__ import annotations

from collections.abc import Sequence

from nucfast.pipeline.grid import Window
from nucfast.slide.base import Part


def inside(parts: list[Part], window: Window, scale: float) -> list[Part]:
    """What of parts in level-0 pixels lies in a window of model pixels."""
    sides = [round(side * scale) for side in (window.left, window.top, window.right, window.bottom)]
    found = []
    for x, y, width, height in parts:
        left, top = max(x, sides[0]), max(y, sides[1])
        right, bottom = min(x + width, sides[2]), min(y + height, sides[3])
        if left < right and top < bottom:
            found.append((left, top, right - left, bottom - top))
    return found


def joined(parts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Parts (x, y, width, height), of which those that share a whole side are one."""

    def along(axis: int, parts: Sequence[Sequence[int]]) -> list[list[int]]:
        across = 1 - axis
        found: list[list[int]] = []
        for part in sorted(parts, key=lambda part: (part[across], part[across + 2], part[axis])):
            last = found[-1] if found else [-1] * 4
            if last[across::2] == [*part][across::2] and last[axis] + last[axis + 2] == part[axis]:
                last[axis + 2] += part[axis + 2]
            else:
                found.append([*part])
        return found

    fewer = along(1, along(0, parts))
    return fewer if len(fewer) == len(parts) else joined(fewer)
