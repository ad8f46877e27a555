// Draws the rings of polygons on a picture, antialiased.
//
// Every pixel stands for 2 x 2 samples. A sample belongs to a line if its centre is at most half of the
// line's width away from the ring, to a filled ring if it is inside by the even-odd rule. A pixel becomes the
// average of its samples: of as many as the ring holds in the ring's colour, of the others in the pixel's
// own. Rings are drawn one after the other, over those before them; no ring sees more of the picture than its
// own box.
#pragma once

#include <cstdint>

#include "nucfast/view.hpp"

namespace nucfast {

//   vertices  (P, 2)        x, y in pixel-corner coordinates of the picture; may lie outside
//   offsets   (count + 1)   ring i is vertices offsets[i] .. offsets[i + 1], closed or not
//   colors    (count, 3)    of each ring
//   width                   of the lines in pixels; 0: rings are filled instead
//   picture   (H, W, 3)     drawn on
//
// Throws std::invalid_argument, leaving `picture` untouched, if offsets do not rise from 0 to P, a coordinate
// is not finite or beyond 1e9, or the width is not 0 to 1000.
void draw_outlines(Plane<const double> vertices, const std::int64_t* offsets,
                   Plane<const std::uint8_t> colors, double width, Image<std::uint8_t> picture);

}  // namespace nucfast
