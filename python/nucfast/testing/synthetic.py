"""H&E-like slides with exact truth, drawn from nothing.

The picture is built as two maps of stain concentration, haematoxylin and eosin, and turned into light by
the law of Beer and Lambert with the stain vectors of Ruifrok & Johnston, "Quantification of
histochemical staining by color deconvolution" (2001). So stains mix as they do in tissue, and another
laboratory is another pair of stain strengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from nucfast.nuclei import NucleusClass

CLASSES = (
    NucleusClass(1, "epithelial", (230, 60, 50)),
    NucleusClass(2, "inflammatory", (60, 120, 230)),
    NucleusClass(3, "spindle", (40, 170, 80)),
    NucleusClass(4, "other", (240, 180, 40)),
)
"""The classes of synthetic nuclei: names and ids as the four published ones of CoNSeP."""

_EPITHELIAL, _INFLAMMATORY, _SPINDLE, _OTHER = 1, 2, 3, 4
_GLASS, _STROMA, _EPITHELIUM, _LUMEN = 0, 1, 2, 3

# Optical density (base 10) per unit of stain, in red, green, blue: as Ruifrok & Johnston measured it, and
# as Macenko et al., "A method for normalizing histology slides for quantitative analysis" (2009), did.
# Laboratories lie between the two, the second being the pinker.
_HAEMATOXYLIN = np.array([[0.650, 0.704, 0.286], [0.563, 0.720, 0.406]], np.float32)
_EOSIN = np.array([[0.072, 0.990, 0.105], [0.216, 0.801, 0.558]], np.float32)
_STEPS = 128  # concentrations are kept as bytes, in steps of 1/128: a slide needs two bytes per pixel
_WARP_UM = 30  # how far a fibre strays from a straight line
_STRIP = 256  # rows worked on at once, which bounds the memory of everything that needs floats

Float = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class SyntheticSlide:
    """A made-up slide and its truth.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) int32; 0 = background, 1..n = nuclei. Each label is 4-connected, all its pixels are
            pixels of the nucleus, and no other pixel is; nuclei may touch.
        class_ids: (n,) uint8; ``class_ids[i]`` is the class of label i + 1.
        classes: the class scheme.
        mpp: micrometres per pixel.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int32]
    class_ids: NDArray[np.uint8]
    classes: tuple[NucleusClass, ...]
    mpp: float


@dataclass(frozen=True)
class _Gland:
    """A round group of epithelial cells; with a lumen a gland, without one a solid nest."""

    x: float  # centre, um
    y: float
    radius: float  # um
    lumen: float  # radius of the lumen as a share; 0: solid
    stretch: float  # length over width
    angle: float
    waves: tuple[float, ...]  # amplitude and phase of the outline's harmonics 2, 3, 5

    def outline(self, angle: Float) -> Float:
        """Radius at an angle, as a share of ``radius``."""
        wobble: Float = np.ones_like(angle)
        for k, harmonic in enumerate((2, 3, 5)):
            wobble += self.waves[2 * k] * np.cos(harmonic * angle + self.waves[2 * k + 1])
        return wobble


@dataclass(frozen=True)
class _Nucleus:
    class_id: int
    x: float  # um
    y: float
    angle: float
    a: float  # semi-axes, um
    b: float


def synthetic_slide(
    width: int, height: int, *, mpp: float = 0.5, nuclei_per_mm2: float = 2500, seed: int = 0
) -> SyntheticSlide:
    """Draw a piece of H&E-stained tissue: glands and solid nests in fibrous stroma, on white glass.

    Args:
        width: pixels.
        height: pixels.
        mpp: micrometres per pixel.
        nuclei_per_mm2: nuclei asked for per square millimetre of tissue; where they find no room, fewer
            are drawn.
        seed: equal seeds give equal slides; also sets the strength of the stains.
    """
    for name, value in {
        "width": width,
        "height": height,
        "mpp": mpp,
        "nuclei_per_mm2": nuclei_per_mm2,
    }.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    return _Painter(width, height, mpp, seed).paint(nuclei_per_mm2)


class _Painter:
    def __init__(self, width: int, height: int, mpp: float, seed: int) -> None:
        self.width, self.height, self.mpp = width, height, mpp
        self.rng = np.random.default_rng(seed)
        self.haematoxylin = np.zeros((height, width), np.uint8)
        self.eosin = np.zeros((height, width), np.uint8)
        self.region = np.zeros((height, width), np.uint8)
        self.labels = np.zeros((height, width), np.int32)
        # Tiles of noise that patches are cut from, at features of about 1, 2.5 and 8 um.
        self.fine, self.medium, self.coarse = (self._noise_tile(um / mpp) for um in (0.9, 2.2, 8.0))
        self.fibre_angle = self.rng.uniform(0, np.pi)
        side = max(width, height) * mpp
        self.flow_grid = _smooth_grid(self.rng, height, width, min(220.0, side) / mpp)

    def paint(self, nuclei_per_mm2: float) -> SyntheticSlide:
        tissue = self._tissue()
        self._paint_stroma(tissue)
        area_mm2 = np.count_nonzero(self.region) * (self.mpp / 1000) ** 2
        wanted = round(nuclei_per_mm2 * area_mm2)
        classes: list[int] = []
        for nucleus in self._epithelium(round(0.5 * wanted)):
            self._paint_nucleus(nucleus, classes)
        for nucleus in self._stroma_nuclei(max(0, wanted - len(classes)) * 3):
            if len(classes) >= wanted:
                break
            self._paint_nucleus(nucleus, classes)
        return SyntheticSlide(self._expose(), self.labels, np.array(classes, np.uint8), CLASSES, self.mpp)

    # Tissue

    def _tissue(self) -> NDArray[np.uint8]:
        """255 in tissue, 0 on glass, smooth between; drawn small and enlarged."""
        rows, cols = max(4, self.height // 16), max(4, self.width // 16)
        y, x = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, cols)
        rough = np.asarray(_enlarge(_smooth_grid(self.rng, rows, cols, max(rows, cols) / 5), rows, cols))
        inside = 1.22 - (np.abs(x) ** 4 + np.abs(y) ** 4) ** 0.25 - 0.25 * np.clip(rough, -1, 1.6)
        small = Image.fromarray(np.uint8(np.clip(inside * 400 + 127, 0, 255)))
        return np.asarray(small.resize((self.width, self.height), Image.Resampling.BICUBIC))

    def _paint_stroma(self, tissue: NDArray[np.uint8]) -> None:
        """Fibres: noise stretched along the level lines of a smooth field, so that they flow and wave."""
        size = 1024
        along, across = 7.0 / self.mpp, 0.9 / self.mpp
        octaves = [_blurred_noise(self.rng, size, radius) for radius in (1.4, 3.5, 9.0)]
        fibres = _standard(0.8 * octaves[0] + octaves[1] + 0.7 * octaves[2])
        cos, sin = np.float32(np.cos(self.fibre_angle)), np.float32(np.sin(self.fibre_angle))
        x = np.arange(self.width, dtype=np.float32)
        cell = 2.0  # texture pixels per `across`
        gaps = _smooth_grid(self.rng, self.height, self.width, 60 / self.mpp)
        tone = _smooth_grid(self.rng, self.height, self.width, 150 / self.mpp)
        for rows in _strips(self.height):
            y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
            warp = self._strip(self.flow_grid, rows) * np.float32(_WARP_UM / self.mpp)
            v = (x * sin + y * cos + warp) * np.float32(cell / across)
            u = (x * cos - y * sin + 0.5 * warp) * np.float32(cell / along)
            pattern = fibres[v.astype(np.int32) % size, u.astype(np.int32) % size]
            grain = self._tiled(self.medium, rows)
            loose = np.clip(0.35 + 0.5 * self._strip(gaps, rows), 0, 1)
            dense = np.clip(1 + 0.26 * (1 + loose) * pattern + 0.14 * grain - 0.4 * loose, 0.05, 1.9)
            shade = 1 + 0.18 * self._strip(tone, rows)
            there = np.clip((tissue[rows].astype(np.float32) - 112) / 30, 0, 1)
            self.eosin[rows] = _to_steps(0.165 * dense * shade * there)
            self.haematoxylin[rows] = _to_steps((0.025 + 0.04 * dense) * there)
            self.region[rows] = there > 0.9

    # Epithelium

    def _epithelium(self, wanted: int) -> Iterator[_Nucleus]:
        """Place glands and nests, paint them, and give their nuclei until there are ``wanted``."""
        rng, given = self.rng, 0
        side = min(self.width, self.height) * self.mpp
        placed = np.empty((0, 3))
        for _ in range(400 + wanted):
            if given >= wanted:
                return
            radius = min(rng.uniform(32, 78), 0.3 * side)
            x, y = rng.uniform(0, self.width * self.mpp), rng.uniform(0, self.height * self.mpp)
            reach = 1.25 * radius
            if not self._is_stroma(x, y, 0.7 * reach):
                continue
            if (np.hypot(placed[:, 0] - x, placed[:, 1] - y) < placed[:, 2] + reach + 6).any():
                continue
            placed = np.vstack([placed, [x, y, reach]])
            solid = radius < 25 or rng.random() < 0.35
            waves = tuple(v for k in (2, 3, 5) for v in (rng.uniform(0, 0.14 / k * 2), rng.uniform(0, 6.3)))
            lumen = 0.0 if solid else max(0.2, 1 - rng.uniform(20, 30) / radius)
            gland = _Gland(x, y, radius, lumen, rng.uniform(1, 1.35), rng.uniform(0, np.pi), waves)
            self._paint_gland(gland)
            for nucleus in self._nest_nuclei(gland) if solid else self._gland_nuclei(gland):
                given += 1
                yield nucleus

    def _paint_gland(self, gland: _Gland) -> None:
        rows, cols, dx, dy = self._patch(gland.x, gland.y, gland.radius * 1.7)
        rho, angle = _polar(dx, dy, gland)
        rng = self.rng
        noise = self._cut(self.coarse, rho.shape)
        grain = self._cut(self.fine, rho.shape)
        edge = rho / gland.outline(angle)
        inside = (edge < 1) & (self.region[rows, cols] == _STROMA)
        # A thin pale cleft often parts a gland from the stroma.
        cleft = (edge >= 1) & (edge < 1 + 2.2 / gland.radius * np.clip(noise, 0, 1.5))
        lumen = inside & (edge < gland.lumen * (1 + 0.10 * noise))
        basal = np.clip((edge - gland.lumen) / (1 - gland.lumen), 0, 1)
        blue = rng.uniform(0.07, 0.14)
        h = blue * (0.75 + 0.5 * basal) * (1 + 0.25 * noise + 0.18 * grain)
        e = rng.uniform(0.10, 0.17) * (1 + 0.22 * noise + 0.15 * grain)
        if gland.lumen and rng.random() < 0.45:  # goblet cells: mucin pushes the cytoplasm aside
            vacuoles = np.clip(3.2 * self._cut(self.coarse, rho.shape) - 1.2, 0, 1) * (basal < 0.55)
            h, e = h * (1 - 0.65 * vacuoles), e * (1 - 0.8 * vacuoles)
        debris = 0.08 * np.clip(self._cut(self.coarse, rho.shape) - 0.9 + 0.3 * grain, 0, 1)
        h, e = np.where(lumen, 0.6 * debris + 0.006, h), np.where(lumen, debris + 0.010, e)
        for plane, values in ((self.haematoxylin, h), (self.eosin, e)):
            patch = plane[rows, cols]
            patch[inside] = _to_steps(values)[inside]
            patch[cleft] = patch[cleft] // 3
        region = self.region[rows, cols]
        region[inside] = _EPITHELIUM
        region[lumen] = _LUMEN

    def _gland_nuclei(self, gland: _Gland) -> Iterator[_Nucleus]:
        """A crowded row at the base of the cells, sometimes a second one (pseudostratified)."""
        rng = self.rng
        thickness = 1 - gland.lumen
        layers = [0.30] if rng.random() < 0.55 else [0.26, 0.56]
        plump = rng.uniform(0.9, 1.12)
        for depth in layers:
            step = 5.6 * plump / (gland.radius * (1 - depth * thickness))
            for angle in np.arange(0, 2 * np.pi - step / 2, step) + rng.uniform(0, step):
                angle += rng.normal(0, 0.12 * step)
                share = 1 - thickness * (depth + rng.normal(0, 0.07))
                x, y, outward = _on_outline(gland, angle, share)
                size = 3.45 * plump * rng.lognormal(0, 0.11)
                aspect = rng.uniform(1.15, 1.75) ** 0.5
                tilt = outward + rng.normal(0, 0.22)
                yield _Nucleus(_EPITHELIAL, x, y, tilt, size * aspect, size / aspect)

    def _nest_nuclei(self, gland: _Gland) -> Iterator[_Nucleus]:
        rng, pitch = self.rng, self.rng.uniform(8.6, 10.8)
        count = int(1.3 * gland.radius * gland.stretch / pitch) + 1
        for i in range(-count, count + 1):
            for j in range(-count, count + 1):
                u = (i + 0.5 * (j % 2)) * pitch + rng.normal(0, 0.17 * pitch)
                v = j * 0.87 * pitch + rng.normal(0, 0.17 * pitch)
                angle = np.asarray(np.arctan2(v, u))
                if np.hypot(u, v) > gland.radius * float(gland.outline(angle)) - 3.5:
                    continue
                x, y = _to_world(gland, u, v)
                size, aspect = 3.6 * rng.lognormal(0, 0.14), rng.uniform(1.0, 1.5) ** 0.5
                other = rng.random() < 0.02
                yield _Nucleus(
                    _OTHER if other else _EPITHELIAL,
                    x,
                    y,
                    rng.uniform(0, np.pi),
                    size * aspect,
                    size / aspect,
                )

    # Stroma

    def _stroma_nuclei(self, tries: int) -> Iterator[_Nucleus]:
        """Spindle cells along the fibres, inflammatory cells in swarms, and a few others."""
        rng = self.rng
        width_um, height_um = self.width * self.mpp, self.height * self.mpp
        swarms = rng.uniform(0, 1, (max(2, round(width_um * height_um / 60_000)), 2)) * (width_um, height_um)
        for _ in range(tries):
            kind = rng.choice((_INFLAMMATORY, _SPINDLE, _OTHER), p=(0.52, 0.43, 0.05))
            if kind == _INFLAMMATORY and rng.random() < 0.8:
                x, y = swarms[rng.integers(len(swarms))] + rng.normal(0, 38, 2)
            else:
                x, y = rng.uniform(0, width_um), rng.uniform(0, height_um)
            if not self._is_stroma(x, y, 1.5):
                continue
            if kind == _SPINDLE:
                long, thin = 5.6 * rng.lognormal(0, 0.22), 1.55 * rng.lognormal(0, 0.18)
                yield _Nucleus(_SPINDLE, x, y, self._fibre_angle_at(x, y) + rng.normal(0, 0.2), long, thin)
            elif kind == _INFLAMMATORY:
                size, aspect = 2.55 * rng.lognormal(0, 0.09), rng.uniform(1.0, 1.25) ** 0.5
                yield _Nucleus(_INFLAMMATORY, x, y, rng.uniform(0, np.pi), size * aspect, size / aspect)
            else:
                size, aspect = 2.9 * rng.lognormal(0, 0.2), rng.uniform(1.0, 1.9) ** 0.5
                yield _Nucleus(_OTHER, x, y, rng.uniform(0, np.pi), size * aspect, size / aspect)

    def _fibre_angle_at(self, x: float, y: float) -> float:
        """Direction of the level line of the field that `_paint_stroma` stretches its noise along."""
        grid = self.flow_grid
        rows, cols = grid.shape
        r = min(max(int(y / self.mpp / self.height * rows), 1), rows - 2)
        c = min(max(int(x / self.mpp / self.width * cols), 1), cols - 2)
        per_um = _WARP_UM / 2 / self.mpp
        slope_x = (grid[r, c + 1] - grid[r, c - 1]) * per_um * cols / self.width + np.sin(self.fibre_angle)
        slope_y = (grid[r + 1, c] - grid[r - 1, c]) * per_um * rows / self.height + np.cos(self.fibre_angle)
        return float(np.arctan2(slope_x, -slope_y))

    # Nuclei

    def _paint_nucleus(self, nucleus: _Nucleus, classes: list[int]) -> None:
        """Draw a nucleus where no earlier one lies; drop it if too little of it would be seen."""
        rng, kind = self.rng, nucleus.class_id
        reach = 1.25 * nucleus.a + self.mpp
        rows, cols, dx, dy = self._patch(nucleus.x, nucleus.y, reach)
        if dx.size == 0 or dy.size == 0:
            return
        cos, sin = np.cos(nucleus.angle), np.sin(nucleus.angle)
        u, v = (dx * cos + dy * sin) / nucleus.a, (dy * cos - dx * sin) / nucleus.b
        if kind == _SPINDLE:
            v = v + rng.normal(0, 0.45) * (u * u - 0.4)
        rho = np.hypot(u, v)
        rough = {_EPITHELIAL: 0.05, _INFLAMMATORY: 0.04, _SPINDLE: 0.05, _OTHER: 0.15}[kind]
        angle = np.arctan2(v, u)
        rho = rho * (1 + sum(rng.normal(0, rough) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3)))
        shape = rho < 1
        labels = self.labels[rows, cols]
        visible = shape & (labels == 0)
        full = np.pi * nucleus.a * nucleus.b / self.mpp**2
        needed = 0.9 if kind == _SPINDLE else 0.72
        seen = np.count_nonzero(visible)
        if seen < max(4, needed * np.count_nonzero(shape)) or seen < 0.3 * full:
            return
        if seen < np.count_nonzero(shape):
            visible = _connected(visible, rho)
        classes.append(kind)
        labels[visible] = len(classes)
        texture = self._cut(self.fine, rho.shape)
        clumps = self._cut(self.medium, rho.shape)
        strength = rng.lognormal(0, 0.17)
        rim = np.clip((rho - 0.68) / 0.25, 0, 1)
        if kind == _EPITHELIAL:  # vesicular: pale inside, a dark membrane, a nucleolus or two
            h = 0.36 * (0.84 + 0.24 * clumps + 0.24 * texture) + 0.15 * rim
            for _ in range(rng.integers(0, 3)):
                spot = np.hypot(u - rng.normal(0, 0.3), v - rng.normal(0, 0.3)) * nucleus.b
                h = h + 0.22 * np.clip(1.4 - spot / 0.6, 0, 1)
        elif kind == _INFLAMMATORY:
            h = 0.57 * (0.97 + 0.30 * clumps + 0.16 * texture) + 0.05 * rim
        elif kind == _SPINDLE:
            h = 0.42 * (0.95 + 0.20 * clumps + 0.20 * texture) + 0.06 * rim
        else:
            h = 0.58 * (0.95 + 0.30 * clumps + 0.12 * texture)
        self.haematoxylin[rows, cols][visible] = _to_steps(strength * h)[visible]
        e = 0.10 + 0.35 * self.eosin[rows, cols].astype(np.float32) / _STEPS
        self.eosin[rows, cols][visible] = _to_steps(e)[visible]

    # Light

    def _expose(self) -> NDArray[np.uint8]:
        """Beer and Lambert, then the blur of the optics and the noise of the sensor."""
        rng = self.rng
        blue, pink = rng.uniform(0.9, 1.35), rng.uniform(0.85, 1.5)
        shares = rng.uniform(0.25, 0.95) + np.array([-0.25, 0.05])
        stains = [
            (1 - share) * pair[0] + share * pair[1]
            for share, pair in zip(shares, (_HAEMATOXYLIN, _EOSIN), strict=True)
        ]
        light = np.array([247, 245, 248], np.float32)
        steps = np.arange(256, dtype=np.float32)[:, None] / _STEPS
        haematoxylin = 10 ** (-steps * blue * stains[0])
        eosin = light * 10 ** (-steps * pink * stains[1])
        image = np.empty((self.height, self.width, 3), np.uint8)
        for rows in _strips(self.height):
            image[rows] = haematoxylin[self.haematoxylin[rows]] * eosin[self.eosin[rows]] + 0.5
        blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.3 / self.mpp))
        image = np.array(blurred)
        for rows in _strips(self.height):
            noise = rng.standard_normal((rows.stop - rows.start, self.width, 1), np.float32) * 1.6
            noise = noise + rng.standard_normal((rows.stop - rows.start, self.width, 3), np.float32) * 1.2
            image[rows] = np.clip(image[rows] + noise + 0.5, 0, 255)
        return image

    # Helpers

    def _noise_tile(self, feature_px: float) -> Float:
        return _standard(_blurred_noise(self.rng, 512, feature_px / 2))

    def _cut(self, tile: Float, shape: tuple[int, ...]) -> Float:
        """A piece of a tile of noise from a random place."""
        if max(shape) > tile.shape[0]:
            tile = np.tile(tile, (-(-shape[0] // tile.shape[0]), -(-shape[1] // tile.shape[1])))
        top = self.rng.integers(tile.shape[0] - shape[0] + 1)
        left = self.rng.integers(tile.shape[1] - shape[1] + 1)
        return tile[top : top + shape[0], left : left + shape[1]]

    def _tiled(self, tile: Float, rows: slice) -> Float:
        row, col = np.arange(rows.start, rows.stop), np.arange(self.width)
        return tile[np.ix_(row % tile.shape[0], col % tile.shape[1])]

    def _strip(self, grid: Float, rows: slice) -> Float:
        """Rows of a coarse grid enlarged to the slide."""
        scale = grid.shape[0] / self.height
        box = (0, rows.start * scale, grid.shape[1], rows.stop * scale)
        return np.asarray(
            Image.fromarray(grid).resize((self.width, rows.stop - rows.start), Image.Resampling.BICUBIC, box)
        )

    def _patch(self, x: float, y: float, reach: float) -> tuple[slice, slice, Float, Float]:
        """Rows and columns within ``reach`` of a point, and their distances from it; all in um."""
        top, bottom = (min(max(0, int(value / self.mpp)), self.height) for value in (y - reach, y + reach))
        left, right = (min(max(0, int(value / self.mpp)), self.width) for value in (x - reach, x + reach))
        dy = ((np.arange(top, bottom) + 0.5) * self.mpp - y).astype(np.float32)
        dx = ((np.arange(left, right) + 0.5) * self.mpp - x).astype(np.float32)
        return slice(top, bottom), slice(left, right), dx, dy[:, None]

    def _is_stroma(self, x: float, y: float, reach: float) -> bool:
        """Whether a point and eight around it lie in the slide and in stroma."""
        for angle in np.arange(9) * np.pi / 4:
            distance = reach if angle < 6.2 else 0.0
            row = int((y + distance * np.sin(angle)) / self.mpp)
            col = int((x + distance * np.cos(angle)) / self.mpp)
            if not (0 <= row < self.height and 0 <= col < self.width and self.region[row, col] == _STROMA):
                return False
        return True


def _polar(dx: Float, dy: Float, gland: _Gland) -> tuple[Float, Float]:
    """Distance from the gland's centre as a share of its radius, and angle, in its stretched frame."""
    cos, sin = np.float32(np.cos(gland.angle)), np.float32(np.sin(gland.angle))
    u, v = (dx * cos + dy * sin) / np.float32(gland.stretch), dy * cos - dx * sin
    return np.hypot(u, v) / np.float32(gland.radius), np.arctan2(v, u)


def _to_world(gland: _Gland, u: float, v: float) -> tuple[float, float]:
    cos, sin = np.cos(gland.angle), np.sin(gland.angle)
    u = u * gland.stretch
    return float(gland.x + u * cos - v * sin), float(gland.y + u * sin + v * cos)


def _on_outline(gland: _Gland, angle: float, share: float) -> tuple[float, float, float]:
    """A point on the outline shrunk to ``share``, and the direction from the centre to it."""
    radius = gland.radius * share * float(gland.outline(np.asarray(angle)))
    x, y = _to_world(gland, radius * np.cos(angle), radius * np.sin(angle))
    return x, y, float(np.arctan2(y - gland.y, x - gland.x))


def _connected(visible: NDArray[np.bool_], rho: Float) -> NDArray[np.bool_]:
    """The 4-connected part of ``visible`` that holds its innermost pixel."""
    grown = np.zeros_like(visible)
    grown[np.unravel_index(np.argmin(np.where(visible, rho, np.inf)), rho.shape)] = True
    size = 0
    while size != (size := int(np.count_nonzero(grown))):
        spread = grown.copy()
        spread[1:] |= grown[:-1]
        spread[:-1] |= grown[1:]
        spread[:, 1:] |= grown[:, :-1]
        spread[:, :-1] |= grown[:, 1:]
        grown = spread & visible
    return grown


def _strips(height: int) -> Iterator[slice]:
    for top in range(0, height, _STRIP):
        yield slice(top, min(top + _STRIP, height))


def _smooth_grid(rng: np.random.Generator, height: int, width: int, feature_px: float) -> Float:
    """Random values on a grid of ``feature_px``: enlarged smoothly, a field over (height, width)."""
    shape = max(3, round(height / feature_px) + 1), max(3, round(width / feature_px) + 1)
    return rng.standard_normal(shape, np.float32)


def _enlarge(grid: Float, height: int, width: int) -> Float:
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def _blurred_noise(rng: np.random.Generator, size: int, radius_px: float) -> Float:
    """Noise with features of about twice ``radius_px``, periodic: it can be tiled without a seam."""
    frequency = np.fft.fftfreq(size).astype(np.float32)
    damping = np.exp(-2 * (np.pi * radius_px) ** 2 * frequency**2).astype(np.float32)
    spectrum = np.fft.fft2(rng.standard_normal((size, size), np.float32))
    return _standard(np.real(np.fft.ifft2(spectrum * damping[:, None] * damping)).astype(np.float32))


def _standard(noise: Float) -> Float:
    standard: Float = (noise - noise.mean()) / noise.std()
    return standard


def _to_steps(concentration: Float) -> NDArray[np.uint8]:
    return np.asarray(np.clip(concentration * _STEPS + 0.5, 0, 255), np.uint8)
