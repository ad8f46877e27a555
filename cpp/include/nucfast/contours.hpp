// The outer ring of every 4-connected part of every label.
//
// Coordinates are (x, y) = (column, row) of pixel corners: pixel (r, c) covers [c, c + 1] x [r, r + 1].
// Parts are found by union-find over the runs of all rows; then one walk per part follows the cracks between
// its pixels and the rest, the part on its right hand (crack following, Rosenfeld: Connectivity in digital
// pictures, J. ACM 17, 1970; here with the 8-connected turn below). Parts are walked in raster order, so that
// the rows of neighbours are in cache, and shared out to threads. Cost: pixels + border length.
//
// The walk reads labels, not a table of precomputed cracks, and branches on what it reads: that was measured
// to be faster, because the processor then runs ahead of the memory.
//
// Why rings are simple. A vertex can be met twice only where two diagonal pixels belong to the part and the
// other two do not. There the walk turns left, to the diagonal pixel, and so stays beside the same background
// pixel. A 4-path inside the part joins the diagonal pixels and, closed at the vertex, parts the two
// background pixels from each other: one of them lies in a hole. So the walk passes the vertex once and
// the hole, which is not traced, is left inside the ring. (A diagonal pixel of the same label but of another
// part is no reason to turn left: the two rings touch in that vertex.)
//
//   edges      the vertices of the walk; area = pixels of the part + its holes.
//   midpoints  the middles of the unit edges walked. Each vertex is cut by at most one segment, within 1/2 of
//              it, so this ring is simple too and the centres of the same pixels lie inside. It smooths
//              staircases into straight lines. Every right turn takes 1/8 px and every left turn gives 1/8
//              px; there are four more right than left: its area is exactly 1/2 px less than that of `edges`.
//
// Rings are counter-clockwise in the axes x, y (positive shoelace area, as RFC 7946 wants; clockwise on
// a screen, where y points down). They start at the first pixel in raster order, `edges` at its top left
// corner, `midpoints` in the middle of its top edge; the last point repeats the first. No three consecutive
// points are collinear.
#pragma once

#include <cstdint>
#include <vector>

#include "nucfast/view.hpp"

namespace nucfast {

enum class RingStyle { edges, midpoints };

struct Rings {
    std::vector<Label> labels;          // (R,) the label of each ring
    std::vector<std::int64_t> offsets;  // (R + 1,) ring i is points offsets[i] .. offsets[i + 1]
    std::vector<float> points;          // (P, 2) x, y: exact, they are multiples of 1/2 below 2^23
};

// Rings are ordered by label, those of one label by their first pixel in raster order, whatever `threads` is.
// Throws std::invalid_argument at a negative label or a side beyond 2^23 px.
Rings contours(Plane<const Label> labels, RingStyle style, int threads);

}  // namespace nucfast
