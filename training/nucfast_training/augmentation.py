"""Random changes of training patches: position and shape, colour and sharpness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

# Haematoxylin, eosin and residual in optical density (Ruifrok & Johnston, Anal Quant Cytol Histol 2001).
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
UNMIX = np.linalg.inv(STAINS)
DENSITY = -np.log((np.arange(256) + 1.0) / 256.0).astype(np.float32)


Planes = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Jitter:
    """One draw of ``jitter``: what is done to the optical density, then to the pixels.

    ``matrix`` (3, 3) and ``offset`` (3,) map densities: ``matrix.T @ density + offset``. ``blur`` is the
    sigma of a Gaussian, ``sharpen`` the share of detail added, ``noise`` the sigma of noise in grey levels,
    ``quality`` that of JPEG; 0 leaves each out. ``seed`` is the noise's.
    """

    matrix: NDArray[np.float32]
    offset: NDArray[np.float32]
    blur: float
    sharpen: float
    noise: float
    quality: int
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator, strength: float) -> Jitter:
        """Draw with ``strength``, where 1 is the range seen between laboratories."""
        # Stain amounts vary one by one; a little mixing between them turns the stain colours themselves.
        gain = np.diag(np.exp(rng.normal(0.0, [0.25 * strength, 0.25 * strength, 0.15 * strength])))
        mixing = np.eye(3) + rng.normal(0.0, 0.06 * strength, (3, 3))
        offset = rng.normal(0.0, 0.03 * strength, 3)
        blurred, sharpened, noisy, compressed = rng.random(4) < 0.3
        amount, noise = rng.uniform(0.3, 1.2) * strength, rng.uniform(1.0, 8.0) * strength
        return cls(
            (UNMIX @ gain @ STAINS @ mixing).astype(np.float32),
            offset.astype(np.float32),
            amount if blurred else 0.0,
            amount if sharpened and not blurred else 0.0,
            noise if noisy else 0.0,
            int(rng.integers(40, 95)) if compressed else 0,
            int(rng.integers(2**62)),
        )


def jitter(image: NDArray[np.uint8], rng: np.random.Generator, *, strength: float) -> NDArray[np.uint8]:
    """Vary stain amount, stain colour, exposure, focus, noise and compression of one RGB patch.

    Args:
        image: (H, W, 3) uint8.
        rng: the only source of randomness.
        strength: 0 = unchanged, 1 = the range seen between laboratories.
    """
    if strength <= 0:
        return image
    drawn = Jitter.draw(rng, strength)
    density = cv2.transform(DENSITY[image], np.column_stack([drawn.matrix.T, drawn.offset]))
    out = 256.0 * np.exp(-density) - 1.0
    if drawn.blur:
        out = cv2.GaussianBlur(out, (0, 0), drawn.blur)
    if drawn.sharpen:
        out += drawn.sharpen * (out - cv2.GaussianBlur(out, (0, 0), 1.0))
    if drawn.noise:
        noise = np.random.default_rng(drawn.seed).standard_normal(out.shape, np.float32)
        out += np.float32(drawn.noise) * noise
    patch = np.clip(out, 0, 255).astype(np.uint8)
    if drawn.quality:
        settings = [cv2.IMWRITE_JPEG_QUALITY, drawn.quality]
        coded = cv2.imencode(".jpg", patch[..., ::-1], settings)[1]  # OpenCV's order is BGR
        patch = np.ascontiguousarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1])
    return patch


def flip(planes: Planes, rng: np.random.Generator) -> Planes:
    """Mirror left and right, up and down, or both."""
    axes = [(0,), (1,), (0, 1)][rng.integers(3)]
    return {name: np.flip(plane, axes) for name, plane in planes.items()}


def rot90(planes: Planes, rng: np.random.Generator) -> Planes:
    """Turn by 90, 180 or 270 degrees."""
    turns = int(rng.integers(1, 4))
    return {name: np.rot90(plane, turns) for name, plane in planes.items()}


def shift_scale_rotate(planes: Planes, rng: np.random.Generator) -> Planes:
    """Move by up to 6 %, scale by up to 20 %, turn by up to 45 degrees; the rim is mirrored."""
    height, width = planes["image"].shape[:2]
    centre = ((width - 1) / 2, (height - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, rng.uniform(-45, 45), rng.uniform(0.8, 1.2))
    matrix[:, 2] += rng.uniform(-0.0625, 0.0625, 2) * [width, height]
    return {
        name: cv2.warpAffine(
            np.ascontiguousarray(plane),
            matrix,
            (width, height),
            flags=_mode(name),
            borderMode=cv2.BORDER_REFLECT_101,
        )
        for name, plane in planes.items()
    }


def elastic(planes: Planes, rng: np.random.Generator) -> Planes:
    """Smooth random displacements (Simard et al., ICDAR 2003): 4 px deep, 16 px wide."""
    height, width = planes["image"].shape[:2]
    cols, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    field = []
    for _ in range(2):
        noise = cv2.GaussianBlur(rng.standard_normal((height, width)).astype(np.float32), (0, 0), 16.0)
        field.append(noise * (4.0 / max(float(np.abs(noise).max()), 1e-6)))
    return {
        name: cv2.remap(
            np.ascontiguousarray(plane),
            cols + field[0],
            rows + field[1],
            _mode(name),
            borderMode=cv2.BORDER_REFLECT_101,
        )
        for name, plane in planes.items()
    }


def _mode(name: str) -> int:
    # Ids must not be mixed. Binary targets are thresholded nowhere, so nearest is right for them as well.
    return cv2.INTER_LINEAR if name == "image" else cv2.INTER_NEAREST


def brightness_contrast(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Contrast and brightness by up to 20 %."""
    return _to_uint8(image * rng.uniform(0.8, 1.2) + 255.0 * rng.uniform(-0.2, 0.2))


def hue_saturation(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Hue by up to 14 degrees, saturation by up to 20 %."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(-7, 7)) % 180.0
    hsv[..., 1] *= rng.uniform(0.8, 1.2)
    return np.asarray(cv2.cvtColor(_to_uint8(hsv), cv2.COLOR_HSV2RGB), np.uint8)


def blur(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Gaussian blur with a sigma of up to 1.2 px."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2)), np.uint8)


def noise(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Gaussian noise with a sigma of up to 10 grey levels."""
    return _to_uint8(image + rng.normal(0.0, rng.uniform(1.0, 10.0), image.shape))


def _to_uint8(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


_GEOMETRIC: dict[str, Callable[[Planes, np.random.Generator], Planes]] = {
    "flip": flip,
    "rot90": rot90,
    "shift_scale_rotate": shift_scale_rotate,
    "elastic": elastic,
}
_COLOUR: dict[str, Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]] = {
    "brightness_contrast": brightness_contrast,
    "hue_saturation": hue_saturation,
    "blur": blur,
    "noise": noise,
}
AUGMENTATIONS = (*_GEOMETRIC, *_COLOUR)


def augment(planes: Planes, rng: np.random.Generator, probabilities: Mapping[str, float]) -> Planes:
    """Apply each augmentation with its probability, in the order of ``AUGMENTATIONS``.

    Args:
        planes: "image" (H, W, 3) uint8 and any number of targets (H, W).
        rng: the only source of randomness.
        probabilities: by name, 0..1.
    """
    for name in AUGMENTATIONS:
        if name in probabilities and rng.random() < probabilities[name]:
            if name in _GEOMETRIC:
                planes = _GEOMETRIC[name](planes, rng)
            else:
                planes = planes | {"image": _COLOUR[name](np.ascontiguousarray(planes["image"]), rng)}
    return {name: np.ascontiguousarray(plane) for name, plane in planes.items()}
