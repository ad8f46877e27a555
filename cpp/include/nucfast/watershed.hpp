// Marker-controlled watershed by priority flooding, 4-connected.
//
// The pixel flooded next is the lowest of those queued, and of equally low ones the one queued first. It
// gives its label to its unlabelled neighbours, up, left, right, down, and queues each at its own elevation
// or at the level of the flood, whichever is higher. Marker pixels are queued at the start, in raster order,
// at their own elevation. So the result is the same on every platform (Beucher, Meyer: The morphological
// approach to segmentation, 1993; Barnes, Lehman, Mulla: Priority-flood, 2014).
//
// Elevations are small integers, so the queue is a list per level and each pixel costs a constant. Connected
// parts of the mask cannot influence each other: they are flooded in batches of neighbouring parts, so that
// the pixels stay in cache, and threads take batches. Marker pixels without anything to flood are never
// queued.
#pragma once

#include <cstdint>

#include "nucfast/view.hpp"

namespace nucfast {

// Fills `labels` with the markers grown over their basins.
//
//   elevation  (H, W)  std::uint8_t or std::uint16_t; low at nucleus centres
//   mask       (H, W)  labels live only where true
//   markers    (H, W)  0 = unlabelled; markers outside the mask are dropped
//   labels     (H, W)  out: nuclei; mask that no marker reaches is 0. May be `markers` itself
//
// The caller guarantees equal shapes. The result does not depend on `threads`. Throws std::length_error for
// 2^31 or more pixels, leaving `labels` untouched, and std::invalid_argument for a negative marker, leaving
// `labels` in an undefined state. Linear in pixels.
template <typename T>
void watershed(Plane<const T> elevation, Plane<const bool> mask, Plane<const Label> markers, int threads,
               Plane<Label> labels);

}  // namespace nucfast
