// Square windows of an image: cutting them out, putting them back, blending where they overlap; and pixels
// that lie in channels.
//
// A window's origin is the (row, col) of its first pixel; it may be negative and windows may overlap. Results
// do not depend on `threads`. Cost: the pixels of the windows.
#pragma once

#include <cstdint>

#include "nucfast/view.hpp"

namespace nucfast {

// `data[((i * size_px + row) * size_px + col) * channels + channel]`.
template <typename T>
struct Tiles {
    T* data = nullptr;
    std::ptrdiff_t count = 0;
    std::ptrdiff_t size_px = 0;
    std::ptrdiff_t channels = 0;

    T* row(std::ptrdiff_t i, std::ptrdiff_t r) const { return data + (i * size_px + r) * size_px * channels; }
};

// Copies the windows at `origins` (out.count, 2) into `out`; what lies outside the image becomes `fill`.
// The caller guarantees equal channels.
//
// Consecutive windows that start at one row are filled together, row by row, so that the image is read once,
// in the order in which it lies.
void tile(Image<const std::uint8_t> image, const std::int32_t* origins, std::uint8_t fill,
          Tiles<std::uint8_t> out, int threads);

// Copies each tile without its outer `margin_px` pixels to its place in `out`; what lies outside is dropped.
// Where centres overlap the last tile wins; pixels under no centre stay as they are. The caller guarantees
// equal channels. Throws std::invalid_argument, leaving `out` untouched, unless 0 <= 2 * margin_px < size_px.
template <typename T>
void stitch(Tiles<const T> tiles, const std::int32_t* origins, std::ptrdiff_t margin_px, Image<T> out);

// Averages overlapping tiles, each pixel weighted by its place in `window` (size_px, size_px): the sum of
// weight * value, in the order of the tiles, times the reciprocal of the sum of weights. Pixels of `out` with
// no weight, covered or not, become 0. The caller guarantees equal channels and a window of the tiles' size.
// Throws std::invalid_argument, leaving `out` untouched, unless all weights are finite and not negative; and,
// leaving part of `out` written, if the weighted sum of a pixel is not finite.
//
// Rows of the image are finished one after another in a buffer that stays in the cache: each tile is read
// once and `out` written once, past the caches.
template <typename T>
void blend(Tiles<const T> tiles, const std::int32_t* origins, Plane<const float> window, Image<float> out,
           int threads);

// Puts pixels that lie in channels to their places: plane y * block + x of `planes`, which lie one after
// another, holds pixel (y, x) of every block of `out`. The caller guarantees block * block planes of
// (out.rows / block, out.cols / block), without rest. Cost: the pixels.
void pixel_shuffle(const std::uint8_t* planes, std::ptrdiff_t block, Plane<std::uint8_t> out);

extern template void stitch(Tiles<const std::uint8_t>, const std::int32_t*, std::ptrdiff_t,
                            Image<std::uint8_t>);
extern template void stitch(Tiles<const float>, const std::int32_t*, std::ptrdiff_t, Image<float>);
extern template void blend(Tiles<const std::uint8_t>, const std::int32_t*, Plane<const float>, Image<float>,
                           int);
extern template void blend(Tiles<const float>, const std::int32_t*, Plane<const float>, Image<float>, int);

}  // namespace nucfast
