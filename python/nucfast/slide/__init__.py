"""Slides of any format behind one class: sizes, resolution, and pixels at any scale.

Nothing here imports OpenSlide, tifffile, imagecodecs or Pillow before a slide is opened.
"""

from nucfast.slide.base import Level, Slide
from nucfast.slide.inputs import SLIDE_SUFFIXES, SlideInput, files_of, find_slides, is_slide_file
from nucfast.slide.opening import open_slide
from nucfast.slide.tissue import TissueMask, tissue_mask
from nucfast.slide.writer import write_slide

__all__ = [
    "SLIDE_SUFFIXES",
    "Level",
    "Slide",
    "SlideInput",
    "TissueMask",
    "files_of",
    "find_slides",
    "is_slide_file",
    "open_slide",
    "tissue_mask",
    "write_slide",
]
