// Splits a mask into nuclei along the valleys of a height map (a predicted distance to the nucleus edge).
//
//   1. Every pixel of the mask points to the highest of its eight neighbours in the mask, if that is higher
//      than itself. Equal heights count the earlier pixel in raster order as the higher one, so heights are
//      strictly ordered and no pointer runs in a circle. Following the pointers leads to a summit; the
//      pixels that share one are its basin.
//   2. Basins that share an edge (4-neighbours) meet at a saddle: the maximum, over their pixel pairs, of the
//      lower pixel's height. From the highest saddle down, two groups of basins are joined if the lower of
//      their two summits rises less than `min_rise` above the saddle. What remains is one group per summit
//      whose dynamics is at least `min_rise`: the way to any higher summit first loses that much height
//      (Grimaud: A new measure of contrast: the dynamics, 1992).
//   3. Climbing uses corners, saddles do not: a ridge one pixel wide that runs diagonally is one summit,
//      while a valley one pixel wide that runs diagonally still separates. Pixels that hang on to their
//      nucleus by a corner only are then dropped: of each group its largest 4-connected part is kept.
//
// The result is local, unlike that of a flooding queue. Step 1 sees neighbours only. In step 2 a basin's fate
// is found by walking from it over the highest saddle at hand, through basins lower than itself and over
// saddles less than `min_rise` below its summit, until the first higher basin; all that is walked through
// ends in the same nucleus. So a nucleus depends on itself and on its direct neighbours. Ties are broken by
// relative position alone. Hence a crop of an image, or the image shifted, has the same nuclei to the pixel
// away from its edges, whatever lies at the far end of their clump.
#pragma once

#include <cstdint>

#include "nucfast/view.hpp"

namespace nucfast {

// Fills `nuclei` with 1..n in raster order of the first pixel, 0 elsewhere, and returns n.
//
//   height    (H, W)  higher towards nucleus centres
//   mask      (H, W)  nuclei live only where true
//   min_rise          in units of `height`; 0 or less joins nothing
//
// The caller guarantees equal shapes; `nuclei` must not overlap the inputs. Throws std::length_error for 2^31
// - 1 or more pixels. Linear in pixels; the saddles lower than `min_rise` below a summit are sorted.
Label split_instances(Plane<const std::uint8_t> height, Plane<const bool> mask, int min_rise,
                      Plane<Label> nuclei);

struct NucleiSettings {
    int threshold = 128;     // lowest probability in the mask
    int min_rise = 1;        // as above
    double peak_share = 0;   // 0..1; 0 skips step 3 below
    double max_hole_px = 0;  // largest hole to fill
    double min_area_px = 0;  // smallest nucleus to keep
};

// From a network's maps to nuclei:
//
//   1. The height is smoothed with the 3x3 binomial kernel, so that a single pixel makes no summit.
//   2. The mask is where the probability is at or above the threshold. It is split as above, but for step 3.
//   3. Group by group, not clump by clump, since the far end of a clump must not decide about this nucleus,
//      of the mask stay the pixels with at least `peak_share` of the highest probability in their group.
//   4. Holes of the mask, 4-connected, that do not reach the edge of the image are filled if they are small
//      and all their rows lie in one group: what is left between nuclei that touch is no hole.
//   5. Each 4-connected part of a group is a nucleus, if it is not too small.
//
// Arguments, result and errors as above; `probability` has the shape of `height`.
Label find_nuclei(Plane<const std::uint8_t> probability, Plane<const std::uint8_t> height,
                  const NucleiSettings& settings, Plane<Label> nuclei);

}  // namespace nucfast
