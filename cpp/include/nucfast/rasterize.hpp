// Fills polygons into a label map: the way back from rings to pixels.
//
// A pixel belongs to a polygon if its centre does, by the even-odd rule. Scanline fill: every polygon edge is
// cut with the centre lines of the rows it crosses, the cuts of a row are sorted and filled pairwise (Foley
// et al.: Computer Graphics: Principles and Practice, 2nd ed. 1990, section 3.6). Half-open rules (an edge
// covers y0 <= centre < y1, a pair fills xa <= centre < xb) and one formula for a cut, whichever way the edge
// runs, make polygons that share an edge neither overlap nor leave a gap.
//
// Cost: per polygon its vertices, n log n of its cuts, and its pixels.
#pragma once

#include <cstdint>

#include "nucfast/view.hpp"

namespace nucfast {

//   vertices  (P, 2)     x, y in pixel-corner coordinates; may lie outside the image
//   offsets   (count+1)  polygon i is vertices offsets[i] .. offsets[i + 1], closed or not
//   values    (count)    what to write, >= 0
//   out       (H, W)     written where zero: a pixel keeps the first polygon that covers it
//
// Throws std::invalid_argument, leaving `out` untouched, if offsets do not rise from 0 to P, a coordinate is
// not finite or beyond 1e15, or a value is negative.
void rasterize(Plane<const double> vertices, const std::int64_t* offsets, const Label* values,
               std::ptrdiff_t count, Plane<Label> out);

}  // namespace nucfast
