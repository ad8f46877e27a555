// What is measured of every label: area, box, moments, perimeter, convex hull, mean intensity.
//
// The map is read once, row by row, as runs of one label. A run of m pixels adds its moments in closed form
// (m mid^2 + m (m^2 - 1) / 12 for the squares; after Yang, Albregtsen: Fast and exact computation of
// Cartesian geometric moments using discrete Green's theorem, Pattern Recognition 29, 1996). Moments are
// taken about the label's first pixel, so the numbers stay small, and exact for all but huge objects,
// wherever the object lies.
//
// Perimeter: that of scikit-image's `perimeter(neighborhood=4)`, exactly. Pixels with a 4-neighbour outside
// the object are its border; each border pixel counts 0, 1, sqrt 2 or (1 + sqrt 2) / 2 by how many of its
// 4- and 8-neighbours are border of the same object (Benkrid, Crookes, Benkrid: Design and FPGA
// implementation of a perimeter estimator, Queen's University of Belfast). Three rows of border labels are
// kept for that.
//
// Convex area: exact area of the hull of the pixels' corners. Only the first and the last pixel of a label in
// a row can touch the hull, so one extent per label and row is kept; sorted by label they rise by row, and
// two monotone chains give the hull (Andrew: Another efficient algorithm for convex hulls in two dimensions,
// Information Processing Letters 9, 1979). Cost: pixels + runs + border pixels.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "nucfast/view.hpp"

namespace nucfast {

// One row per label 1..count; the caller's memory. A label that does not occur has area 0, a box of zeros,
// first pixel (-1, -1) and zeros elsewhere.
struct RegionColumns {
    std::int64_t* area;         // (count) px
    std::int32_t* bbox;         // (count, 4) min_row, min_col, max_row, max_col, half-open
    std::int32_t* first_pixel;  // (count, 2) row, col of the first pixel in raster order
    double* moments;            // (count, 5) sums of r, c, r r, r c, c c over pixels, about the first pixel
    double* perimeter;          // (count) px
    double* convex_area;        // (count) px
};

// An image of the labels' rows and columns, and the sums over each label's pixels.
struct Intensity {
    std::variant<Cutout<const std::uint8_t>, Cutout<const float>> image;
    Plane<double> sums;  // (count, channels), 0 before
};

// Throws std::invalid_argument, leaving `out` untouched but not the sums, if a label is negative or greater
// than `count` or a side of the map is beyond 2^31 - 1 px.
void region_properties(Plane<const Label> labels, std::ptrdiff_t count, const RegionColumns& out,
                       const std::vector<Intensity>& intensities = {});

// The sums alone, and adds the number of each label's pixels to `pixels` (count). With `weights`, of the
// shape of the labels, each pixel counts so many times, in both. Throws as above, but for the sides.
void intensity_sums(Plane<const Label> labels, std::ptrdiff_t count, std::int64_t* pixels,
                    const Intensity& intensity, Plane<const std::uint8_t> weights = {});

}  // namespace nucfast
