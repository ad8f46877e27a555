"""Slides of any format behind one class: sizes, resolution, and pixels at any scale.

Nothing here imports OpenSlide, tifffile, imagecodecs or Pillow before a slide is opened.
"""

from nucfast.slide.base import Level, Slide
from nucfast.slide.inputs import SlideInput, files_of, find_slides
from nucfast.slide.opening import open_slide
from nucfast.slide.tissue import TissueMask, tissue_mask
from nucfast.slide.writer import write_slide

__all__ = [
    "Level",
    "Slide",
    "SlideInput",
    "TissueMask",
    "files_of",
    "find_slides",
    "open_slide",
    "tissue_mask",
    "write_slide",
]
