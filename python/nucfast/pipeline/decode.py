"""From the network's maps of a region to the nuclei it owns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nucfast.engine import Bundle, Maps
from nucfast.engine.bundle import MANIFEST
from nucfast.errors import BundleError
from nucfast.nuclei import Nuclei
from nucfast.ops import Rings, contours, find_nuclei, mean_intensity, region_properties
from nucfast.pipeline.grid import Region, Window
from nucfast.pipeline.maps import scaled

# The outputs that each decoder reads. "climb" splits touching nuclei along the distance map; "components"
# does not split: a nucleus is a 4-connected part of the mask.
DECODERS = {"climb": {"nucleus", "distance"}, "components": {"nucleus"}}


# A part of a region that a thread decodes is so many halos high: what it sees beyond is decoded twice.
_LEAST_HALOS = 8


def check_decoder(bundle: Bundle) -> None:
    """Refuse a bundle that this release cannot decode.

    Raises:
        BundleError: its decoder is unknown, or an output that the decoder reads is missing.
    """
    label = bundle.label()
    name = bundle.decoder.name
    if name not in DECODERS:
        raise BundleError(
            f"{label}: decoder {name!r} is not known to this release (it has {', '.join(DECODERS)}): "
            "run  pip install --upgrade nucfast, or export the bundle for one of these decoders"
        )
    missing = DECODERS[name] - {spec.name for spec in bundle.outputs}
    if missing:
        raise BundleError(
            f"{label}: decoder {name!r} needs the outputs {sorted(missing)}: {bundle.remedy(MANIFEST)}"
        )


@dataclass(frozen=True)
class Decoded:
    """A region's nuclei, and the ids of those that may be cut because they reach past the halo."""

    nuclei: Nuclei
    oversized: frozenset[int]


def decode_region(
    maps: Maps,
    image: NDArray[np.uint8],
    region: Region,
    bundle: Bundle,
    *,
    scale: float,
    mpp: float,
    slide: Window,
    threads: int = 1,
) -> Decoded:
    """Turn maps into the nuclei whose centroid lies in ``region.owned``.

    Several threads share it as regions of their own, each with its halo, which changes no nucleus.

    Args:
        maps: the bundle's outputs over ``region.decoded``.
        image: (H, W, 3) uint8, the pixels of ``region.decoded``.
        region: where they lie.
        bundle: decoder settings and classes.
        scale: level-0 pixels per model pixel.
        mpp: um per level-0 pixel.
        slide: the whole slide in model pixels; an object cut by its edge is not oversized.
        threads: so many, if the region is large enough for them.
    """
    bands = _bands(region, bundle, threads)
    if len(bands) > 1:

        def decoded(band: Region) -> Decoded:
            row, height = band.decoded.top - region.decoded.top, band.decoded.height
            parts = {
                name: values[scaled(band.decoded, region.decoded, bundle.output(name).stride)]
                for name, values in maps.items()
            }
            pixels = image[row : row + height]
            return decode_region(parts, pixels, band, bundle, scale=scale, mpp=mpp, slide=slide)

        with ThreadPoolExecutor(len(bands) - 1) as pool:
            others = [pool.submit(decoded, band) for band in bands[1:]]
            found = [decoded(bands[0]), *(other.result() for other in others)]
        # What is too large for a band may lie within the region.
        if not any(part.oversized for part in found):
            joined = Nuclei.concat([part.nuclei for part in found])
            return Decoded(joined[joined.id.argsort()], frozenset())

    settings, window, um = bundle.decoder, region.decoded, mpp * scale
    nucleus = np.ascontiguousarray(maps["nucleus"][..., 0])
    splits = settings.name == "climb"
    height = np.ascontiguousarray(maps["distance"][..., 0]) if splits else nucleus
    labels = find_nuclei(
        nucleus,
        height,
        threshold=settings.nucleus_threshold,
        min_rise=settings.min_rise if splits else 256,  # higher than any summit: what touches stays one
        peak_share=settings.peak_share,
        max_hole_px=settings.max_hole_um2 / um**2,
        min_area_px=settings.min_area_um2 / um**2,
    )
    rings = contours(labels, style="midpoints")  # labels are 4-connected: ring i belongs to label i + 1
    shape = region_properties(
        labels, intensity={"color": image, "nucleus": nucleus}, count=rings.offsets.size - 1
    )
    color = shape["mean_color"]

    corner = np.array([window.top, window.left])
    # Of pixel centres: a whole number is the middle of a pixel. Rounded to 1/1024 px, which no addition of a
    # corner disturbs, so that a nucleus has the same position whichever region it is found in.
    centroid = np.round((shape["centroid"] + corner) * 1024.0) / 1024.0
    owned = region.owned
    keep = (centroid >= [owned.top, owned.left]).all(axis=1)
    keep &= (centroid < [owned.bottom, owned.right]).all(axis=1)
    class_id, class_probability = vote(maps, labels, shape["first_pixel"], bundle)
    vertices, offsets = _kept(rings, keep)
    vertices += corner[::-1]
    vertices *= scale
    first = shape["first_pixel"][keep].astype(np.int64) + corner
    box = shape["bbox"][keep] + np.tile(corner, 2)
    lengths_um = {
        "perimeter_um": shape["perimeter"],
        "major_axis_um": shape["major_axis_length"],
        "minor_axis_um": shape["minor_axis_length"],
    }
    features = {
        "area_um2": shape["area"][keep] * um**2,
        **{name: value[keep] * um for name, value in lengths_um.items()},
        "eccentricity": shape["eccentricity"][keep],
        "solidity": shape["solidity"][keep],
        "circularity": shape["circularity"][keep],
        "orientation_rad": shape["orientation"][keep],
        "mean_red": color[keep, 0],
        "mean_green": color[keep, 1],
        "mean_blue": color[keep, 2],
    }
    nuclei = Nuclei(
        id=first[:, 0] << 32 | first[:, 1],
        x=(centroid[keep, 1] + 0.5) * scale,
        y=(centroid[keep, 0] + 0.5) * scale,
        bbox=box[:, [1, 0, 3, 2]] * scale,
        class_id=class_id[keep],
        probability=(shape["mean_nucleus"][keep] / 255.0).astype(np.float32),
        class_probability=class_probability[keep],
        features={name: value.astype(np.float32) for name, value in features.items()},
        vertices=vertices,
        offsets=offsets,
        classes=bundle.classes,
        mpp=mpp,
    )
    return Decoded(nuclei, frozenset(nuclei.id[_cut(box, window, slide)].tolist()))


def _bands(region: Region, bundle: Bundle, threads: int) -> list[Region]:
    """The region cut into as many as there are threads, if it is large enough for them."""
    owned = region.owned
    count = max(1, min(threads, owned.height // (_LEAST_HALOS * max(1, bundle.halo_px))))
    edges = [owned.top + owned.height * at // count for at in range(count + 1)]
    return [
        replace(region, owned=replace(owned, top=top, bottom=bottom)).with_halo(
            bundle.halo_px, 0, bundle.stride_px, within=region.decoded
        )
        for top, bottom in pairwise(edges)
    ]


def vote(
    maps: Maps, labels: NDArray[np.int32], first_pixel: NDArray[np.int32], bundle: Bundle
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Class of each nucleus, by the mean class probabilities over its pixels, and the probability of that.

    A pixel weighs as much as it is nucleus, so that what is around one has little say in its class. Without a
    class output every nucleus has the bundle's only class, or 0 if it has none.
    """
    count = first_pixel.shape[0]
    if "class" not in maps:
        only = bundle.classes[0].id if bundle.classes else 0
        return np.full(count, only, np.uint8), np.ones(count, np.float32)
    stride = bundle.output("class").stride
    # Every stride-th pixel stands for the block that one pixel of the class map covers.
    mean = mean_intensity(
        labels[::stride, ::stride],
        maps["class"],
        count=count,
        weights=maps["nucleus"][::stride, ::stride, 0],
    )
    unseen = np.isnan(mean[:, 0])  # so thin that no such pixel hit them
    rows, cols = first_pixel[unseen].T // stride
    mean[unseen] = maps["class"][rows, cols]
    best = mean.argmax(axis=1)
    ids = np.array([entry.id for entry in bundle.classes], np.uint8)
    return ids[best], (mean[np.arange(count), best] / 255.0).astype(np.float32)


def _kept(rings: Rings, keep: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points and offsets of the kept rings."""
    lengths = np.diff(rings.offsets)
    offsets = np.concatenate([[0], np.cumsum(lengths[keep])]).astype(np.int64)
    return np.compress(np.repeat(keep, lengths), rings.points, axis=0).astype(np.float64), offsets


def _cut(box: NDArray[np.int64], window: Window, slide: Window) -> NDArray[np.bool_]:
    """Which boxes touch an edge of the window where the slide goes on."""
    cut = np.zeros(box.shape[0], bool)
    if window.top > slide.top:
        cut |= box[:, 0] <= window.top
    if window.left > slide.left:
        cut |= box[:, 1] <= window.left
    if window.bottom < slide.bottom:
        cut |= box[:, 2] >= window.bottom
    if window.right < slide.right:
        cut |= box[:, 3] >= window.right
    return cut
