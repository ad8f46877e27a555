// Stain normalisation of H&E images after Macenko et al., "A method for normalizing histology slides for
// quantitative analysis", ISBI 2009.
//
// Optical density is -ln((value + 1) / 240) of each channel, from a table. Tissue is every pixel whose three
// densities are 0.15 or more. The two leading eigenvectors of their covariance span a plane; in it, the
// directions at the 1st and 99th percentile of the pixels' angles are the two stains, haematoxylin the one
// with more red density. A pixel's concentrations are those with which the stains explain its density best
// (least squares); the 99th percentile of each, over all pixels, is the stain's strength in the image.
//
// Percentiles come from histograms of 65,536 bins instead of a sort, by nearest rank and with linear
// interpolation inside the bin. Everything that is linear in densities (the plane's coordinates, the
// concentrations, the normalised density) is the sum of three table entries, one per channel, so fit is three
// passes of look-ups over the image and normalisation is one. Angles are compared as t / (|s| + |t|), which
// rises with the angle of (s, t) and needs no arc tangent. Sums are taken in blocks of fixed size that are
// joined in order, counts are whole numbers: results do not depend on the number of threads or the
// instruction set.
#pragma once

#include <cstdint>

#include "nucfast/view.hpp"

namespace nucfast {

// Haematoxylin, then eosin.
struct Stains {
    double vectors[2][3];  // optical density of red, green, blue per unit of stain; unit vectors
    double strengths[2];   // concentration that 99 % of the pixels do not exceed
};

// Throws std::invalid_argument unless the image has three channels and shows two stains: if it has no tissue
// (white, empty), if the directions of its stains are less than 3 degrees apart (one colour, one stain), or
// if so little of it is stained that a strength is not positive.
Stains fit_stains(Image<const std::uint8_t> image, int threads);

// Repaints an image stained with `source` as if stained with `target`; values are rounded down and at most
// 255. `out` may be `image`. The caller guarantees equal shapes. Throws std::invalid_argument, leaving `out`
// untouched, unless the image has three channels, all numbers are finite, strengths are positive, and the
// vectors of `source` are at least 3 degrees apart.
void normalize_stain(Image<const std::uint8_t> image, const Stains& source, const Stains& target,
                     Image<std::uint8_t> out, int threads);

}  // namespace nucfast
