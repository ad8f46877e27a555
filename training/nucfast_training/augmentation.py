"""Colour and sharpness of stained tissue, varied as laboratories and scanners vary it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# Haematoxylin, eosin and residual in optical density (Ruifrok & Johnston, Anal Quant Cytol Histol 2001).
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
UNMIX = np.linalg.inv(STAINS)
DENSITY = -np.log((np.arange(256) + 1.0) / 256.0).astype(np.float32)


def jitter(image: NDArray[np.uint8], rng: np.random.Generator, *, strength: float) -> NDArray[np.uint8]:
    """Vary stain amount, stain colour, exposure, focus, noise and compression of one RGB patch.

    Args:
        image: (H, W, 3) uint8.
        rng: the only source of randomness.
        strength: 0 = unchanged, 1 = the range seen between laboratories.
    """
    if strength <= 0:
        return image
    # Stain amounts vary one by one; a little mixing between them turns the stain colours themselves.
    gain = np.diag(np.exp(rng.normal(0.0, [0.25 * strength, 0.25 * strength, 0.15 * strength])))
    mixing = np.eye(3) + rng.normal(0.0, 0.06 * strength, (3, 3))
    matrix = (UNMIX @ gain @ STAINS @ mixing).astype(np.float32)
    offset = rng.normal(0.0, 0.03 * strength, 3).astype(np.float32)
    density = cv2.transform(DENSITY[image], np.column_stack([matrix.T, offset]))
    out = 256.0 * np.exp(-density) - 1.0
    if rng.random() < 0.3:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 1.2) * strength)
    elif rng.random() < 0.3:
        out += rng.uniform(0.3, 1.2) * strength * (out - cv2.GaussianBlur(out, (0, 0), 1.0))
    if rng.random() < 0.3:
        out += rng.normal(0.0, rng.uniform(1.0, 8.0) * strength, out.shape).astype(np.float32)
    patch = np.clip(out, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = int(rng.integers(40, 95))
        patch = cv2.imdecode(
            cv2.imencode(".jpg", patch, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR
        )
    return patch
