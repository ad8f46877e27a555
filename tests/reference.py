"""Slow, obvious Python versions of the kernels: the specification the C++ is held to."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# components, distance, watershed, split ------------------------------------------------------------------

EDGES = [(-1, 0), (0, -1), (0, 1), (1, 0)]
CORNERS = [(-1, -1), (-1, 1), (1, -1), (1, 1)]


def neighbours(
    row: int, col: int, shape: tuple[int, ...], steps: list[tuple[int, int]] = EDGES
) -> Iterator[tuple[int, int]]:
    for dr, dc in steps:
        if 0 <= row + dr < shape[0] and 0 <= col + dc < shape[1]:
            yield row + dr, col + dc


def label(image: NDArray, *, connectivity: int) -> NDArray[np.int32]:
    """Flood each unlabelled object from its first pixel."""
    steps = EDGES + (CORNERS if connectivity == 8 else [])
    labels = np.zeros(image.shape, np.int32)
    count = 0
    for start in np.ndindex(image.shape):
        if not image[start] or labels[start]:
            continue
        count += 1
        labels[start] = count
        waiting = [start]
        while waiting:
            for pixel in neighbours(*waiting.pop(), image.shape, steps):
                if image[pixel] == image[start] and not labels[pixel]:
                    labels[pixel] = count
                    waiting.append(pixel)
    return labels


def distance_transform(image: NDArray) -> NDArray[np.float32]:
    """Compare each pixel with all others."""
    distances = np.zeros(image.shape, np.float32)
    for row, col in np.argwhere(image):
        others = np.argwhere(image != image[row, col])
        squares = ((others - (row, col)) ** 2).sum(axis=1)
        distances[row, col] = np.sqrt(squares.min()) if len(others) else np.inf
    return distances


def watershed(
    elevation: NDArray, markers: NDArray[np.int32], *, mask: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Flood with a heap ordered by (level, time of queueing)."""
    labels = np.where(mask, markers, 0)
    pixels = zip(*np.nonzero(labels), strict=True)
    queue = [(int(elevation[pixel]), time, pixel) for time, pixel in enumerate(pixels)]
    heapq.heapify(queue)
    time = len(queue)
    while queue:
        level, _, pixel = heapq.heappop(queue)
        for other in neighbours(*pixel, mask.shape):
            if mask[other] and not labels[other]:
                labels[other] = labels[pixel]
                heapq.heappush(queue, (max(level, int(elevation[other])), time, other))
                time += 1
    return labels


def basins(height: NDArray[np.uint8], mask: NDArray[np.bool_]) -> dict[tuple[int, int], tuple[int, int]]:
    """Map each pixel of the mask to its summit."""
    summit: dict[tuple[int, int], tuple[int, int]] = {}
    for start in zip(*np.nonzero(mask), strict=True):
        pixel = start
        while True:
            around = [p for p in neighbours(*pixel, mask.shape, EDGES + CORNERS) if mask[p]]
            best = max([pixel, *around], key=lambda p: rank(height, p))
            if best == pixel:
                break
            pixel = best
        summit[start] = pixel
    return summit


def rank(height: NDArray[np.uint8], pixel: tuple[int, int]) -> tuple[int, int, int]:
    """Higher pixels rank higher; of equal ones the earlier in raster order."""
    return int(height[pixel]), -pixel[0], -pixel[1]


def saddles(
    height: NDArray[np.uint8], summit: dict[tuple[int, int], tuple[int, int]]
) -> dict[frozenset[tuple[int, int]], int]:
    """Map each pair of basins that share an edge, given by their summits, to the height of their saddle."""
    highest: dict[frozenset[tuple[int, int]], int] = {}
    for pixel, top in summit.items():
        for other in neighbours(*pixel, height.shape):
            if other in summit and summit[other] != top:
                pair = frozenset((top, summit[other]))
                highest[pair] = max(highest.get(pair, 0), min(int(height[pixel]), int(height[other])))
    return highest


def split_instances(
    height: NDArray[np.uint8], mask: NDArray[np.bool_], *, min_rise: int
) -> NDArray[np.int32]:
    """Climb, join from the highest saddle down, keep the largest part of each nucleus."""
    summit = basins(height, mask)
    joined: dict[tuple[int, int], tuple[int, int]] = {}

    def group(top: tuple[int, int]) -> tuple[int, int]:
        while top in joined:
            top = joined[top]
        return top

    def order(item: tuple[frozenset[tuple[int, int]], int]) -> tuple[int, list[tuple[int, int, int]]]:
        pair, saddle = item
        return saddle, sorted((rank(height, p) for p in pair), reverse=True)

    for pair, saddle in sorted(saddles(height, summit).items(), key=order, reverse=True):
        tops = {group(top) for top in pair}
        if len(tops) == 2:
            lower, higher = sorted(tops, key=lambda p: rank(height, p))
            if int(height[lower]) - saddle < min_rise:
                joined[lower] = higher

    nuclei = np.zeros(height.shape, np.int32)
    for pixel, top in summit.items():
        row, col = group(top)
        nuclei[pixel] = 1 + row * height.shape[1] + col
    parts = label(nuclei, connectivity=4)
    areas = Counter(parts[parts > 0].tolist())
    kept: dict[int, int] = {}
    for part in sorted(areas):
        nucleus = int(nuclei[parts == part][0])
        if nucleus not in kept or areas[part] > areas[kept[nucleus]]:
            kept[nucleus] = part
    numbers = np.zeros(len(areas) + 1, np.int32)
    for number, part in enumerate(sorted(kept.values()), 1):
        numbers[part] = number
    return numbers[parts]


def dynamics(height: NDArray[np.uint8], mask: NDArray[np.bool_]) -> dict[tuple[int, int], float]:
    """Map each summit to the height lost on the best way, over saddles, to a higher summit."""
    summit = basins(height, mask)
    around: dict[tuple[int, int], list[tuple[tuple[int, int], int]]] = {top: [] for top in summit.values()}
    for pair, saddle in saddles(height, summit).items():
        a, b = pair
        around[a].append((b, saddle))
        around[b].append((a, saddle))
    result: dict[tuple[int, int], float] = {}
    for start in around:
        reached = {start: 255}
        waiting = deque([start])
        while waiting:
            here = waiting.popleft()
            for there, saddle in around[here]:
                lowest = min(reached[here], saddle)
                if lowest > reached.get(there, -1):
                    reached[there] = lowest
                    waiting.append(there)
        ways = [low for top, low in reached.items() if rank(height, top) > rank(height, start)]
        result[start] = int(height[start]) - max(ways) if ways else float("inf")
    return result
