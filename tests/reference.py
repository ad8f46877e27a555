"""Slow, obvious Python versions of the kernels: the specification the C++ is held to."""

from __future__ import annotations

import hashlib
import heapq
import math
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping

import numpy as np
import orjson
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

# --- overlap and metrics: loops over nuclei, from the published formulas --------------------------------


def ids_of(labels: NDArray[np.int32]) -> list[int]:
    return [int(number) for number in np.unique(labels) if number != 0]


def overlap_matrices(
    true: NDArray[np.int32], pred: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Intersection and union of every true nucleus (row) with every predicted one (column)."""
    true_ids, pred_ids = ids_of(true), ids_of(pred)
    shared = np.zeros((len(true_ids), len(pred_ids)), dtype=np.int64)
    union = np.zeros_like(shared)
    pred_areas = [int((pred == q).sum()) for q in pred_ids]
    for i, t in enumerate(true_ids):
        inside = pred[true == t]
        for j, q in enumerate(pred_ids):
            shared[i, j] = (inside == q).sum()
            union[i, j] = len(inside) + pred_areas[j] - shared[i, j]
    return shared, union


def best_pairs(gain: NDArray[np.float64]) -> list[tuple[int, int]]:
    """One-to-one pairs with the largest sum of ``gain``, without those that gain nothing."""
    rows, cols = linear_sum_assignment(gain, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, cols, strict=True) if gain[i, j] > 0]


def match(iou: NDArray[np.float64], threshold: float) -> list[tuple[int, int]]:
    """As many pairs of overlapping nuclei with IoU >= threshold as possible, then the largest sum of IoUs."""
    allowed = (iou >= threshold) & (iou > 0)
    return best_pairs(np.where(allowed, 1 + iou / (2 * max(1, *iou.shape)), 0.0))


def dice(true: NDArray[np.int32], pred: NDArray[np.int32]) -> float:
    both = ((true > 0) & (pred > 0)).sum()
    return float(2 * both / ((true > 0).sum() + (pred > 0).sum()))


def aggregated_jaccard(true: NDArray[np.int32], pred: NDArray[np.int32], *, one_to_one: bool) -> float:
    shared, union = overlap_matrices(true, pred)
    true_areas = [int((true == t).sum()) for t in ids_of(true)]
    pred_areas = [int((pred == q).sum()) for q in ids_of(pred)]
    iou = shared / np.maximum(union, 1)
    if one_to_one:
        pairs = best_pairs(iou)
    else:
        pairs = []
        for i in range(len(true_areas)):
            # max() keeps the first of equals: the smallest id.
            best = max(range(len(pred_areas)), key=lambda j: (iou[i, j], shared[i, j]), default=None)
            if best is not None and shared[i, best]:
                pairs.append((i, best))
    above = sum(int(shared[i, j]) for i, j in pairs)
    below = sum(int(union[i, j]) for i, j in pairs)
    below += sum(area for i, area in enumerate(true_areas) if i not in {i for i, _ in pairs})
    below += sum(area for j, area in enumerate(pred_areas) if j not in {j for _, j in pairs})
    return above / below


def panoptic_counts(true: NDArray[np.int32], pred: NDArray[np.int32]) -> tuple[int, int, int, float]:
    """TP, FP, FN and the sum of the matches' IoUs, at IoU > 0.5."""
    shared, union = overlap_matrices(true, pred)
    tp, total = 0, 0.0
    for i, j in np.argwhere(2 * shared > union):
        tp += 1
        total += shared[i, j] / union[i, j]
    return tp, shared.shape[1] - tp, shared.shape[0] - tp, total


def panoptic(tp: int, fp: int, fn: int, total: float) -> tuple[float, float, float]:
    """PQ, DQ, SQ."""
    dq = tp / (tp + fp / 2 + fn / 2)
    sq = total / tp if tp else 0.0
    return dq * sq, dq, sq


def average_precision(true: NDArray[np.int32], pred: NDArray[np.int32], threshold: float) -> float:
    shared, union = overlap_matrices(true, pred)
    tp = len(match(shared / np.maximum(union, 1), threshold))
    return tp / (sum(shared.shape) - tp)


def majority_type(labels: NDArray[np.int32], types: NDArray[np.uint8], number: int) -> int:
    votes = types[labels == number]
    votes = votes[votes > 0]
    return int(np.bincount(votes).argmax()) if len(votes) else 0


def detection_pairs(
    true: NDArray[np.int32], pred: NDArray[np.int32], radius_px: float
) -> list[tuple[int, int]]:
    """Pairs of ids by the smallest sum of centroid distances, cut at the radius afterwards."""
    true_ids, pred_ids = ids_of(true), ids_of(pred)
    true_points = [np.argwhere(true == t).mean(axis=0) for t in true_ids]
    pred_points = [np.argwhere(pred == q).mean(axis=0) for q in pred_ids]
    distance = np.array([[np.linalg.norm(a - b) for b in pred_points] for a in true_points])
    distance = distance.reshape(len(true_ids), len(pred_ids))
    rows, cols = linear_sum_assignment(distance)
    return [
        (true_ids[i], pred_ids[j]) for i, j in zip(rows, cols, strict=True) if distance[i, j] <= radius_px
    ]


def type_f1(
    images: list[tuple[list[tuple[int, int]], Mapping[int, int], Mapping[int, int]]], number: int
) -> float:
    """F_c of the HoVer-Net paper over (pairs, true types, predicted types) of each image."""
    tp_c = fp_c = fn_c = fp_d = fn_d = 0
    for pairs, true_types, pred_types in images:
        for t, q in pairs:
            tp_c += true_types[t] == number and pred_types[q] == number
            fp_c += true_types[t] != number and pred_types[q] == number
            fn_c += true_types[t] == number and pred_types[q] != number
        fn_d += sum(c == number for t, c in true_types.items() if t not in {t for t, _ in pairs})
        fp_d += sum(c == number for q, c in pred_types.items() if q not in {q for _, q in pairs})
    return 2 * tp_c / (2 * tp_c + 2 * fp_c + 2 * fn_c + fp_d + fn_d)


# --- contours and rasterize ---------------------------------------------------------------------------------


def parts(labels):
    """The 4-connected parts as (label, set of (row, col)), ordered by label, then by first pixel."""
    seen = set()
    found = []
    rows, cols = labels.shape
    for start in np.ndindex(rows, cols):
        if labels[start] == 0 or start in seen:
            continue
        part, todo = {start}, [start]
        while todo:
            r, c = todo.pop()
            for n in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
                inside = 0 <= n[0] < rows and 0 <= n[1] < cols
                if inside and n not in part and labels[n] == labels[start]:
                    part.add(n)
                    todo.append(n)
        seen |= part
        found.append((int(labels[start]), part))
    return sorted(found, key=lambda p: (p[0], min(p[1])))


def fill_holes(part):
    """The pixels of a part and of its holes: what 4-connected paths from outside do not reach."""
    top, bottom = min(r for r, _ in part) - 1, max(r for r, _ in part) + 1
    left, right = min(c for _, c in part) - 1, max(c for _, c in part) + 1
    outside, todo = {(top, left)}, [(top, left)]
    while todo:
        r, c = todo.pop()
        for n in ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1)):
            if top <= n[0] <= bottom and left <= n[1] <= right and n not in part and n not in outside:
                outside.add(n)
                todo.append(n)
    return {(r, c) for r in range(top, bottom + 1) for c in range(left, right + 1)} - outside


def contour(part, *, style):
    """The ring of one part without its holes, from the unit edges of its filled pixels."""
    filled = fill_holes(part)
    edges = {}  # start vertex (x, y) -> end vertex; filled pixels on the right hand
    for r, c in filled:
        for neighbour, start, end in (
            ((r - 1, c), (c, r), (c + 1, r)),
            ((r, c + 1), (c + 1, r), (c + 1, r + 1)),
            ((r + 1, c), (c + 1, r + 1), (c, r + 1)),
            ((r, c - 1), (c, r + 1), (c, r)),
        ):
            if neighbour not in filled:
                assert start not in edges, "a vertex is met twice"
                edges[start] = end
    r, c = min(part)
    path = [(c, r)]
    while edges[path[-1]] != path[0]:
        path.append(edges[path[-1]])
    assert len(path) == len(edges), "more than one ring"
    points = np.array(path, dtype=float)
    if style == "midpoints":
        points = (points + np.roll(points, -1, axis=0)) / 2
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    points = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return np.concatenate([points, points[:1]])


def rasterize(polygons, values, out):
    """Even-odd test of every pixel centre against every polygon; the first polygon wins."""
    for polygon, value in zip(polygons, values, strict=True):
        for r, c in np.ndindex(out.shape):
            y, crossings = r + 0.5, 0
            for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                if y0 > y1:
                    x0, y0, x1, y1 = x1, y1, x0, y0
                if y0 <= y < y1:
                    crossings += x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) - 0.5 <= c
            if crossings % 2 and out[r, c] == 0:
                out[r, c] = value
    return out


# --- properties ---------------------------------------------------------------------------------------------


def convex_hull_area(pixels):
    """Area of the hull of the corners of the pixels, by gift wrapping."""
    corners = sorted({(r + i, c + j) for r, c in pixels for i in (0, 1) for j in (0, 1)})
    hull = [corners[0]]
    while True:
        here, best = hull[-1], None
        for p in corners:
            if p == here:
                continue
            if best is None:
                best = p
                continue
            turn = (best[0] - here[0]) * (p[1] - here[1]) - (best[1] - here[1]) * (p[0] - here[0])
            farther = abs(p[0] - here[0]) + abs(p[1] - here[1]) > abs(best[0] - here[0]) + abs(
                best[1] - here[1]
            )
            if turn < 0 or (turn == 0 and farther):
                best = p
        if best == hull[0]:
            break
        hull.append(best)
    r, c = np.array(hull).T
    return abs(np.sum(r * np.roll(c, -1) - c * np.roll(r, -1))) / 2


# --- tiles --------------------------------------------------------------------------------------------------


def tile(image, origins, *, size_px, fill):
    out = np.full((len(origins), size_px, size_px, image.shape[2]), fill, np.uint8)
    for (i, r, c, k), _ in np.ndenumerate(out):
        row, col = origins[i][0] + r, origins[i][1] + c
        if 0 <= row < image.shape[0] and 0 <= col < image.shape[1]:
            out[i, r, c, k] = image[row, col, k]
    return out


def stitch(tiles, origins, out, *, margin_px):
    for (i, r, c, k), value in np.ndenumerate(tiles):
        row, col = origins[i][0] + r, origins[i][1] + c
        centre = all(margin_px <= p < tiles.shape[1] - margin_px for p in (r, c))
        if centre and 0 <= row < out.shape[0] and 0 <= col < out.shape[1]:
            out[row, col, k] = value
    return out


def blend(tiles, origins, *, shape, window):
    total, weight = np.zeros((*shape, tiles.shape[3])), np.zeros((*shape, 1))
    for (i, r, c), _ in np.ndenumerate(tiles[..., 0]):
        row, col = origins[i][0] + r, origins[i][1] + c
        if 0 <= row < shape[0] and 0 <= col < shape[1]:
            total[row, col] += window[r, c] * tiles[i, r, c].astype(np.float64)
            weight[row, col] += window[r, c]
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


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


def groups(height: NDArray[np.uint8], mask: NDArray[np.bool_], *, min_rise: int) -> NDArray[np.int32]:
    """Climb, join from the highest saddle down."""
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
    return nuclei


def split_instances(
    height: NDArray[np.uint8], mask: NDArray[np.bool_], *, min_rise: int
) -> NDArray[np.int32]:
    """Of each group of basins the largest part."""
    nuclei = groups(height, mask, min_rise=min_rise)
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


def find_nuclei(
    probability: NDArray[np.uint8],
    height: NDArray[np.uint8],
    *,
    threshold: int,
    min_rise: int,
    peak_share: float,
    max_hole_px: float,
    min_area_px: float,
) -> NDArray[np.int32]:
    """Smooth the height, split, cut nuclei to a share of their peaks, fill small holes, drop small parts."""
    around = np.pad(height.astype(np.int32), 1, mode="edge")
    kernel = [(r, c, (2 - abs(r - 1)) * (2 - abs(c - 1))) for r in range(3) for c in range(3)]
    rows, cols = height.shape
    total = sum(share * around[r : r + rows, c : c + cols] for r, c, share in kernel)
    nuclei = groups(((total + 8) // 16).astype(np.uint8), probability >= threshold, min_rise=min_rise)
    for number in np.unique(nuclei[nuclei > 0]):
        inside = nuclei == number
        lowest = math.ceil(peak_share * int(probability[inside].max()))
        nuclei[inside & (probability < lowest)] = 0
    background = label(nuclei == 0, connectivity=4)
    edges = (background[0], background[-1], background[:, 0], background[:, -1])
    open_parts = set(np.concatenate(edges).tolist())
    for part in set(background[background > 0].tolist()) - open_parts:
        hole = background == part
        beside = (hole[:, 1:] & (nuclei[:, :-1] > 0), hole[:, :-1] & (nuclei[:, 1:] > 0))
        sides = set(nuclei[:, :-1][beside[0]].tolist()) | set(nuclei[:, 1:][beside[1]].tolist())
        if hole.sum() <= max_hole_px and len(sides) == 1:
            nuclei[hole] = sides.pop()
    parts = label(nuclei, connectivity=4)
    areas = np.bincount(parts.ravel())
    kept = areas >= min_area_px
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0)[parts].astype(np.int32)


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


# --- HoVer-Net: from the description in Graham et al., Medical Image Analysis 58, 2019 ----------------------


def scaled(values):
    """Bring values to 0..1 by their extremes; constant ones become 0."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def hover_net_labels(probability, hv, *, nucleus_threshold=0.5, edge_threshold=0.4, min_px=10):
    """Sobel operators, markers and a watershed in floating point, with SciPy, OpenCV and scikit-image."""
    import cv2
    from scipy import ndimage
    from skimage.segmentation import watershed as float_watershed

    def large_parts(mask):
        parts = ndimage.label(mask)[0]
        areas = np.bincount(parts.ravel())
        parts[areas[parts] < min_px] = 0
        return np.searchsorted(np.union1d(parts, 0), parts)

    blobs = large_parts(probability >= nucleus_threshold) > 0
    steep = []
    for k, (dx, dy) in enumerate([(1, 0), (0, 1)]):
        derivative = cv2.Sobel(scaled(hv[..., k].astype(np.float64)), cv2.CV_64F, dx, dy, ksize=21)
        steep.append(1 - scaled(derivative))
    edges = np.where(blobs, np.maximum(*steep), 0)
    energy = -cv2.GaussianBlur(np.where(blobs, 1 - edges, 0), (3, 3), 0)
    seeds = ndimage.binary_fill_holes(blobs & (edges < edge_threshold)).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    markers = large_parts(cv2.morphologyEx(seeds, cv2.MORPH_OPEN, disc))
    return float_watershed(energy, markers, mask=blobs), markers


# --- slide: resampling ---


def area_average(image, x, y, width, height, scale):
    """Output pixel (r, c) is the mean of ``image`` over its square of side ``scale``, white outside."""
    out = np.zeros((height, width, image.shape[2]))
    for row in range(height):
        for col in range(width):
            top, left = y + row * scale, x + col * scale
            for i in range(math.floor(top), math.ceil(top + scale)):
                for j in range(math.floor(left), math.ceil(left + scale)):
                    share = (min(i + 1, top + scale) - max(i, top)) * (
                        min(j + 1, left + scale) - max(j, left)
                    )
                    inside = 0 <= i < image.shape[0] and 0 <= j < image.shape[1]
                    out[row, col] += share * (image[i, j] if inside else 255.0)
    return out / scale**2


def fit_stains(image):
    """Macenko et al., ISBI 2009, in float64: (vectors, strengths) with haematoxylin first."""
    density = -np.log((image.reshape(-1, 3).astype(np.float64) + 1) / 240)
    tissue = density[(density >= 0.15).all(axis=1)]
    plane = np.linalg.eigh(np.cov(tissue.T))[1][:, :0:-1]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    along, across = (tissue @ plane).T
    angles = np.percentile(np.arctan2(across, along), [1, 99], method="nearest")
    vectors = (plane @ np.stack([np.cos(angles), np.sin(angles)])).T
    vectors = vectors[np.argsort(-vectors[:, 0])]
    strengths = np.percentile(density @ np.linalg.pinv(vectors), 99, axis=0, method="nearest")
    return vectors, strengths


def normalize_stain(image, source, target):
    density = -np.log((image.astype(np.float64) + 1) / 240)
    amounts = density @ np.linalg.pinv(source.vectors) / source.strengths * target.strengths
    return np.minimum(240 * np.exp(-amounts @ target.vectors), 255).astype(np.uint8)


def mix(value: int) -> int:
    """The SplitMix64 finaliser."""
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def feature_uuid(identifier: int, slide_name: str) -> str:
    """Version 8: two halves, each of the identifier and both halves of a hash of the slide's name."""
    hashed = hashlib.blake2b(slide_name.encode(), digest_size=16).digest()
    key = [int.from_bytes(hashed[:8], "little"), int.from_bytes(hashed[8:], "little")]
    halves = [mix((mix(identifier % 2**64 ^ key[i]) + key[1 - i]) % 2**64) for i in (0, 1)]
    value = halves[0] << 64 | halves[1]
    value = value & ~(0xF << 76) | 8 << 76
    return str(uuid.UUID(int=value & ~(3 << 62) | 2 << 62))


def geojson_features(nuclei, slide_name, origin, measurement_name):
    """One JSON object per nucleus."""
    lines = []
    classes = {entry.id: {"name": entry.name, "color": list(entry.color)} for entry in nuclei.classes}
    for i, ring in enumerate(nuclei.polygons()):
        columns = {
            **nuclei.features,
            "probability": nuclei.probability,
            "class_probability": nuclei.class_probability,
        }
        properties = {"objectType": "detection"}
        if nuclei.class_id[i]:
            properties["classification"] = classes[nuclei.class_id[i]]
        properties["measurements"] = {
            measurement_name(name): float(np.round(np.float64(column[i]), 4)) + 0.0
            for name, column in columns.items()
            if np.isfinite(column[i])
        }
        feature = {
            "type": "Feature",
            "id": feature_uuid(int(nuclei.id[i]), slide_name),
            "geometry": {"type": "Polygon", "coordinates": [(np.round(ring - origin, 2) + 0.0).tolist()]},
            "properties": properties,
        }
        lines.append(orjson.dumps(feature))
    return lines


def draw_outlines(rings, colors, width, picture):
    """Each pixel is the average of 2 x 2 samples: near the ring, or inside it if there is no width."""
    rows, cols = (np.mgrid[: 2 * picture.shape[0], : 2 * picture.shape[1]] + 0.5) / 2
    for ring, color in zip(rings, colors, strict=True):
        covered = np.zeros(rows.shape, bool)
        for (x0, y0), (x1, y1) in zip(np.roll(ring, 1, axis=0), ring, strict=True):
            if width:
                dx, dy = x1 - x0, y1 - y0
                along = ((cols - x0) * dx + (rows - y0) * dy) / max(dx * dx + dy * dy, 1e-300)
                along = np.clip(along, 0, 1)
                covered |= np.hypot(cols - x0 - along * dx, rows - y0 - along * dy) <= width / 2
            elif y0 != y1:
                crossed = (np.minimum(y0, y1) <= rows) & (rows < np.maximum(y0, y1))
                covered ^= crossed & (cols >= x0 + (rows - y0) * (x1 - x0) / (y1 - y0))
        count = covered.reshape(picture.shape[0], 2, picture.shape[1], 2).sum(axis=(1, 3))[..., None]
        picture[...] = (count * np.array(color) + (4 - count) * picture.astype(int) + 2) // 4
