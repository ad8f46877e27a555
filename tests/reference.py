"""Slow, obvious Python versions of the kernels: the specification the C++ is held to."""

import math

import numpy as np

# --- slide: resampling ---


def area_average(image, x, y, width, height, scale):
    """Output pixel (r, c) is the mean of ``image`` over its square of side ``scale``, white outside."""
    out = np.zeros((height, width, image.shape[2]))
    for row in range(height):
        for col in range(width):
            top, left = y + row * scale, x + col * scale
            for i in range(math.floor(top), math.ceil(top + scale)):
                for j in range(math.floor(left), math.ceil(left + scale)):
                    share = (min(i + 1, top + scale) - max(i, top)) * (
                        min(j + 1, left + scale) - max(j, left)
                    )
                    inside = 0 <= i < image.shape[0] and 0 <= j < image.shape[1]
                    out[row, col] += share * (image[i, j] if inside else 255.0)
    return out / scale**2
