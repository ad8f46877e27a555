"""Stain normalisation of H&E images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nucfast import _core


@dataclass(frozen=True, eq=False)
class Stains:
    """The two stains of an image: first haematoxylin, then eosin.

    Attributes:
        vectors: (2, 3) float64, the optical density (natural logarithm) of red, green and blue that a unit of
            each stain causes; unit vectors where they are fitted.
        strengths: (2,) float64, > 0: the concentration of each stain that 99 % of the pixels do not exceed.
    """

    vectors: NDArray[np.float64]
    strengths: NDArray[np.float64]


REFERENCE_STAINS = Stains(
    vectors=np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]]),
    strengths=np.array([1.9705, 1.0308]),
)
"""The stains of the published implementation of Macenko et al., which others use as their default too."""


def fit_stains(image: NDArray[np.uint8], *, threads: int = 1) -> Stains:
    """Find the two stains of an H&E image.

    Optical density is -ln((value + 1) / 240); tissue is where it is 0.15 or more in every channel. The stains
    are the 1st and the 99th percentile of the tissue's directions in the plane of its two leading
    eigenvectors. All pixels count, none are sampled; percentiles are by nearest rank.

    Args:
        image: (H, W, 3) uint8, RGB.
        threads: how many threads to use; the result is the same for any number.

    Raises:
        TypeError: ``image`` is not uint8; nothing is cast silently.
        ValueError: the shape differs from the above; or the image does not show two stains: it has no tissue
            (it is white or empty), its tissue has one colour (it is constant, or stained once), or so little
            of it is stained that 99 % of the pixels hold none of a stain.

    Macenko et al.: A method for normalizing histology slides for quantitative analysis. ISBI 2009.
    """
    return Stains(*_core.fit_stains(np.ascontiguousarray(image), threads))


def normalize_stain(
    image: NDArray[np.uint8],
    *,
    source: Stains | None = None,
    target: Stains = REFERENCE_STAINS,
    out: NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """Repaint an H&E image as if it had been stained with other stains.

    Each pixel's concentrations of the source's stains are scaled to the strengths of the target and turned
    into light again with the target's vectors; what neither stain explains is lost.

    Args:
        image: (H, W, 3) uint8, RGB.
        source: the stains of ``image``; None: fitted to it. Tiles of one slide should share the stains of the
            slide, or they come out in different colours. With given stains any image is fine, a white one
            too.
        target: the stains to show.
        out: (H, W, 3) uint8, C-contiguous, to be filled and returned instead of a new array; it may be
            ``image`` itself.
        threads: how many threads to use; the result is the same for any number.

    Returns:
        (H, W, 3) uint8, RGB; values are rounded down and at most 255.

    Raises:
        TypeError: a dtype differs from the above; nothing is cast silently.
        ValueError: a shape differs from the above; ``fit_stains`` refuses the image; a number of the stains
            is not finite, a strength is not positive, or the source's vectors are less than 3 degrees apart.

    Macenko et al.: A method for normalizing histology slides for quantitative analysis. ISBI 2009.
    """
    image = np.ascontiguousarray(image)
    if source is None:
        source = fit_stains(image, threads=threads)
    if out is None:
        out = np.empty(image.shape, np.uint8)
    _core.normalize_stain(
        image, source.vectors, source.strengths, target.vectors, target.strengths, out, threads
    )
    return out
