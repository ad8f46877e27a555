// Marker-controlled watershed by priority flooding, 4-connected.
//
// The pixel flooded next is the lowest of those queued, and of equally low ones the one queued first. It
// gives its label to its unlabelled neighbours, up, left, right, down, and queues each at its own elevation
// or at the level of the flood, whichever is higher. Marker pixels are queued at the start, in raster order,
// at their own elevation. So the result is the same on every platform (Beucher, Meyer: The morphological
// approach to segmentation, 1993; Barnes, Lehman, Mulla: Priority-flood, 2014).
//
// Elevations are small integers, so the queue is a list per level and a bit set of the levels in use, and
// each pixel costs a constant. Connected parts of the mask cannot influence each other and are flooded one
// after another: the queue and the pixels it points to stay in cache.
#pragma once

#include <cstdint>

#include "nucfast/view.hpp"

namespace nucfast {

// Grows the non-zero pixels of `labels` in place.
//
//   elevation  (H, W)  std::uint8_t or std::uint16_t; low at nucleus centres
//   mask       (H, W)  labels live only where true; markers elsewhere are cleared
//   labels     (H, W)  in: markers, out: nuclei; mask that no marker reaches stays 0
//
// The caller guarantees equal shapes. Throws std::invalid_argument for a negative marker and
// std::length_error for 2^31 or more pixels, both before `labels` is touched. Linear in pixels.
template <typename T>
void watershed(Plane<const T> elevation, Plane<const bool> mask, Plane<Label> labels);

}  // namespace nucfast
