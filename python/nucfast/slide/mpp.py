"""How large a pixel is: which statement of a file to believe, and when to refuse.

A wrong resolution gives wrong nuclei without any error, so a number is taken only from a field that is meant
to hold it and only in the range of microscopes. A print resolution (72 or 96 dpi) is not one.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from nucfast.errors import SlideError

logger = logging.getLogger("nucfast")

REMEDY = "pass --mpp (0.25 for 40x, 0.5 for 20x)"

# Light microscopy from a 100x oil objective to a macro scan. 72 dpi would be 353 um, 96 dpi 265 um.
MIN_MPP, MAX_MPP = 0.05, 20.0
EXPECTED = f"expected um per pixel, {MIN_MPP:g} to {MAX_MPP:g} (0.25 for 40x, 0.5 for 20x)"

# Above this difference between x and y, circles become ellipses that a network was not trained on.
MAX_ANISOTROPY = 1.02

_OME_UNITS_UM = {
    "m": 1e6,
    "dm": 1e5,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,  # micro sign
    "μm": 1.0,  # Greek mu
    "um": 1.0,
    "nm": 1e-3,
    "pm": 1e-6,
    "Å": 1e-4,
    "in": 25400.0,
}


@dataclass(frozen=True)
class Resolution:
    """Micrometres per level-0 pixel, None if unknown, and where the number comes from."""

    mpp: float | None
    source: str


@dataclass(frozen=True)
class Candidate:
    """What one field of a file says.

    Attributes:
        source: the field, in words.
        x, y: micrometres per pixel; y is None where the field holds one number.
        unit_default: the field reads 1.0 when nobody filled it in, so 1.0 is not a measurement.
        problem: why the field cannot be used, if that is known already.
    """

    source: str
    x: float = math.nan
    y: float | None = None
    unit_default: bool = False
    problem: str | None = None

    def rejection(self) -> str | None:
        """Why this is not a resolution, None if it is one."""
        if self.problem is not None:
            return self.problem
        for value in (self.x, self.x if self.y is None else self.y):
            if not is_credible(value):
                return f"{value:g} um per pixel is outside {MIN_MPP:g} to {MAX_MPP:g}"
            if self.unit_default and abs(value - 1.0) < 1e-6:
                return "1 um per pixel is what writers put when they do not know"
        return None


def is_credible(mpp: float | None) -> bool:
    """Whether this is the resolution of a microscope."""
    return mpp is not None and MIN_MPP <= mpp <= MAX_MPP


def check_flag(mpp: float | None) -> None:
    """Raise ValueError unless ``mpp`` is None or a positive number."""
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp: expected a positive number of um per pixel, got {mpp}")


def check_option(mpp: float | None) -> None:
    """Raise SlideError unless what a user gave is None or the resolution of a microscope."""
    if mpp is not None and not is_credible(mpp):
        raise SlideError(f"mpp: {EXPECTED}, got {mpp:g}")


def resolve_mpp(
    name: str | os.PathLike[str],
    *,
    flag: float | None,
    candidates: Iterable[Candidate],
    objective_power: float | None = None,
) -> Resolution:
    """The resolution of a slide: the caller's, else the first credible candidate, else the objective's.

    Raises:
        SlideError: nothing credible is stated, or x and y differ by more than 2 %. The message says what
            was found and which flag to give.
    """
    check_flag(flag)
    if flag is not None:
        return Resolution(float(flag), "flag")
    rejected = []
    for candidate in candidates:
        problem = candidate.rejection()
        if problem is not None:
            rejected.append(f"{candidate.source}: {problem}")
            continue
        x, y = candidate.x, candidate.x if candidate.y is None else candidate.y
        if max(x, y) / min(x, y) > MAX_ANISOTROPY:
            raise SlideError(
                f"{os.fspath(name)}: pixels are not square ({x:g} x {y:g} um, {candidate.source}); "
                "resample the image, or pass --mpp to treat them as square"
            )
        return Resolution(x if x == y else math.sqrt(x * y), candidate.source)
    if objective_power is not None and 1 <= objective_power <= 100:
        mpp = 10.0 / objective_power
        logger.warning(
            "%s: no mpp stated, %g um per pixel taken from objective power %gx; pass --mpp if it is wrong",
            os.fspath(name),
            mpp,
            objective_power,
        )
        return Resolution(mpp, f"objective power {objective_power:g}x")
    found = f" ({'; '.join(rejected)})" if rejected else ""
    raise SlideError(f"{os.fspath(name)}: resolution unknown{found}; {REMEDY}")


def number(text: str | None) -> float | None:
    """The float that ``text`` spells, None if it spells none."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def openslide_candidates(properties: Mapping[str, str]) -> list[Candidate]:
    """OpenSlide's own statement, which covers every vendor it knows."""
    x = number(properties.get("openslide.mpp-x"))
    y = number(properties.get("openslide.mpp-y"))
    if x is None:
        return [] if y is None else [Candidate("openslide.mpp-y", y)]
    return [Candidate("openslide.mpp-x", x, y)]


def aperio_fields(description: str) -> dict[str, str]:
    """The "key = value" fields of an Aperio image description; empty for any other text."""
    if not description.startswith("Aperio"):
        return {}
    pairs = (part.partition("=") for part in description.split("|")[1:])
    return {key.strip(): value.strip() for key, sign, value in pairs if sign}


def aperio_candidates(fields: Mapping[str, str]) -> list[Candidate]:
    """Aperio's "MPP"."""
    value = number(fields.get("MPP"))
    return [] if value is None else [Candidate("Aperio MPP", value)]


def ome_candidates(xml: str, *, width: int, height: int) -> tuple[list[Candidate], float | None]:
    """PhysicalSizeX and Y of the OME image with the given size, and the objective's nominal magnification."""
    try:
        root = ET.fromstring(xml)
    except ET.ParseError as error:
        return [Candidate("OME-XML", problem=f"not valid XML: {error}")], None

    def elements(tag: str) -> list[ET.Element]:
        # The namespace carries the schema's year; the names have not changed since 2012.
        return [element for element in root.iter() if element.tag.rpartition("}")[2] == tag]

    pixels = [e for e in elements("Pixels") if (e.get("SizeX"), e.get("SizeY")) == (str(width), str(height))]
    powers = {number(e.get("NominalMagnification")) for e in elements("Objective")} - {None}
    power = powers.pop() if len(powers) == 1 else None
    if not pixels:
        return [], power
    sizes = {}
    for axis in ("X", "Y"):
        value = number(pixels[0].get(f"PhysicalSize{axis}"))
        if value is None:
            continue
        unit = pixels[0].get(f"PhysicalSize{axis}Unit", "µm")
        if unit not in _OME_UNITS_UM:
            return [Candidate("OME PhysicalSizeX", problem=f"{value:g} {unit} is not a length")], power
        sizes[axis] = value * _OME_UNITS_UM[unit]
    if not sizes:
        return [], power
    x = sizes.get("X", sizes.get("Y", math.nan))
    return [Candidate("OME PhysicalSizeX", x, sizes.get("Y", x), unit_default=True)], power


def tiff_tag_candidates(x_per_unit: float, y_per_unit: float, unit: int) -> list[Candidate]:
    """TIFF's XResolution and YResolution; ``unit`` is ResolutionUnit: 1 none, 2 inch, 3 centimetre."""
    source = "TIFF resolution tag"
    um = {2: 25400.0, 3: 10000.0}.get(unit)
    if um is None or not (x_per_unit > 0 and y_per_unit > 0):
        return [Candidate(source, problem="no unit")]
    return [Candidate(source, um / x_per_unit, um / y_per_unit, unit_default=True)]
