"""Maps where regions overlap: computed for the first of them, and handed on to the next."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nucfast.engine import Bundle, Engine, Maps
from nucfast.pipeline.grid import Region, Window
from nucfast.pipeline.maps import scaled


def shares(engine: Engine) -> bool:
    """Whether maps are the same to the last digit whichever tile they come from.

    The margin must hold all that has any influence, and sums must not depend on the shape of a tile: those of
    whole numbers do not. A GPU's tiles are all of one size, so that it would save nothing.
    """
    bundle = engine.bundle
    known = bundle.context_px is not None and bundle.context_px <= bundle.margin_px
    return known and engine.precision == "int8" and engine.device == "cpu"


class Seams:
    """What neighbouring regions share, as far as one process computes both.

    A region overlaps those to its right and below by two halos. Its maps there are kept until these have
    taken them, or a row of regions more has begun; one that comes later computes all that it sees.
    """

    def __init__(self, regions: Sequence[Region], bundle: Bundle, *, in_flight: int) -> None:
        self._regions = regions
        self._strides = {output.name: output.stride for output in bundle.outputs}
        self._columns = sum(region.owned.top == regions[0].owned.top for region in regions)
        self._most = self._columns + in_flight + 1
        self._relies: dict[int, list[int]] = {}  # on which regions those that have begun
        self._strips: OrderedDict[int, dict[int, tuple[Window, Maps]]] = OrderedDict()

    def begin(self, region: Region) -> Window:
        """The part of ``region.decoded`` that no region which began before has: to be computed."""
        neighbours = [region.index - self._columns]
        if region.owned.left > self._regions[0].owned.left:
            neighbours.append(region.index - 1)
        missing = region.decoded
        self._relies[region.index] = [index for index in neighbours if index in self._strips]
        for index in self._relies[region.index]:
            other = self._regions[index]
            if other.owned.left == region.owned.left:
                missing = Window(other.decoded.bottom, missing.left, missing.bottom, missing.right)
            else:
                missing = Window(missing.top, other.decoded.right, missing.bottom, missing.right)
        self._strips[region.index] = {}
        while len(self._strips) > self._most:
            self._strips.popitem(last=False)
        return missing

    def has_rest(self, region: Region) -> bool:
        """Whether those that ``begin`` relied on have been computed."""
        return all(region.index in self._strips.get(index, ()) for index in self._relies[region.index])

    def fill(self, region: Region, maps: Maps) -> None:
        """Put what others have computed into a region's maps, which ``has_rest``."""
        for index in self._relies[region.index]:
            part, strip = self._strips[index].pop(region.index)
            for name, values in strip.items():
                maps[name][scaled(part, region.decoded, self._strides[name])] = values

    def keep(self, region: Region, maps: Maps) -> None:
        """Keep what the regions to the right and below share with this one."""
        del self._relies[region.index]
        strips = self._strips.get(region.index)
        if strips is None:
            return
        for index in (region.index + 1, region.index + self._columns):
            if index >= len(self._regions) or self._regions[index].owned.top < region.owned.top:
                continue
            part = region.decoded.within(self._regions[index].decoded)
            if part.area:
                strips[index] = (
                    part,
                    {
                        name: _copy(values[scaled(part, region.decoded, self._strides[name])])
                        for name, values in maps.items()
                    },
                )


def _copy(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """In pages of its own: what stays for long among what comes and goes would cut the heap up."""
    copy = np.frombuffer(mmap.mmap(-1, values.size), np.uint8).reshape(values.shape)
    copy[...] = values
    return copy
