"""Slow, obvious Python versions of the kernels: the specification the C++ is held to."""

import numpy as np

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
