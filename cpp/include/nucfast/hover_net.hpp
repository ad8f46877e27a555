// Nuclei from the maps of a HoVer-Net: the post-processing of Graham et al., "HoVer-Net: Simultaneous
// segmentation and classification of nuclei in multi-tissue histology images", Medical Image Analysis 58,
// 2019.
//
//   1. Blobs: probability at or above a threshold, without 4-connected parts below `min_px` pixels.
//   2. The horizontal map is differentiated along the rows, the vertical one along the columns, by Sobel
//      operators of 21 x 21 (binomial smoothing, reflected at the border without repeating it), and each
//      result is scaled to 0..1 by its own minimum and maximum over the image. Both maps fall steeply where
//      one nucleus ends and the next begins; the edge strength is 1 - the smaller of the two. (The maps need
//      not be scaled first: an affine change of them cancels.)
//   3. Markers: blob pixels of edge strength below a threshold, their holes filled, opened by a disc of 5 px,
//      without 4-connected parts below `min_px` pixels.
//   4. Energy: edge strength inside blobs, smoothed by (1 2 1) / 4 both ways, in 256 levels. Markers are
//      grown over it by `watershed` inside the blobs. (The authors flood in floating point.)
//
// All steps but the last are separable filters and operations on runs or bytes, linear in pixels, and single
// precision is enough for them.
#pragma once

#include "nucfast/view.hpp"

namespace nucfast {

struct HoverNetSettings {
    float nucleus_threshold = 0.5F;  // lowest probability of a nucleus
    float edge_threshold = 0.4F;     // lowest edge strength that is no marker
    int min_px = 10;                 // smallest blob and smallest marker
};

// Fills `labels` with the nuclei 1..n, numbered by the first pixel of their marker in raster order, and
// returns n.
//
//   probability  (H, W)     of nucleus, 0..1
//   hv           (H, W, 2)  horizontal and vertical distance to the nucleus's centre, finite, any scale
//   labels       (H, W)     out; 0 = background and blobs without a marker
//
// The caller guarantees equal sides. The result does not depend on `threads`. Throws std::invalid_argument if
// `hv` is not finite, std::length_error for 2^31 or more pixels, both before `labels` is touched.
Label hover_net_labels(Plane<const float> probability, Image<const float> hv,
                       const HoverNetSettings& settings, int threads, Plane<Label> labels);

}  // namespace nucfast
