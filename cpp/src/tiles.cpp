#include "nucfast/tiles.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace nucfast {
namespace {

// The positions [begin, end) of a window along one axis that lie inside the image.
struct Overlap {
    std::ptrdiff_t begin;
    std::ptrdiff_t end;

    // Of positions [margin, size - margin) of a window that starts at `origin` of an axis of `length`.
    Overlap(std::ptrdiff_t origin, std::ptrdiff_t size, std::ptrdiff_t margin, std::ptrdiff_t length)
        : begin(std::max(margin, -origin)), end(std::max(begin, std::min(size - margin, length - origin))) {}
};

// Adds `count` pixels times their factors. `fixed`: the channels, if the compiler may unroll them; else 0.
template <int fixed, typename T>
void add_weighted(const T* from, const float* factor, std::ptrdiff_t count, std::ptrdiff_t channels,
                  float* sum) {
    const std::ptrdiff_t step = fixed > 0 ? fixed : channels;
    for (std::ptrdiff_t c = 0; c < count; ++c) {
        for (std::ptrdiff_t k = 0; k < step; ++k) {
            sum[c * step + k] += factor[c] * static_cast<float>(from[c * step + k]);
        }
    }
}

}  // namespace

void tile(Image<const std::uint8_t> image, const std::int32_t* origins, std::uint8_t fill,
          Tiles<std::uint8_t> out) {
    const std::ptrdiff_t channels = image.channels;
    const std::ptrdiff_t row_bytes = out.size_px * channels;
    for (std::ptrdiff_t i = 0; i < out.count; ++i) {
        const std::ptrdiff_t top = origins[2 * i];
        const std::ptrdiff_t left = origins[2 * i + 1];
        const Overlap rows(top, out.size_px, 0, image.rows);
        const Overlap cols(left, out.size_px, 0, image.cols);
        for (std::ptrdiff_t r = 0; r < out.size_px; ++r) {
            std::uint8_t* to = out.row(i, r);
            if (r < rows.begin || r >= rows.end || cols.begin == cols.end) {
                std::fill_n(to, row_bytes, fill);
                continue;
            }
            std::fill_n(to, cols.begin * channels, fill);
            std::copy_n(image.row(top + r) + (left + cols.begin) * channels,
                        (cols.end - cols.begin) * channels, to + cols.begin * channels);
            std::fill(to + cols.end * channels, to + row_bytes, fill);
        }
    }
}

template <typename T>
void stitch(Tiles<const T> tiles, const std::int32_t* origins, std::ptrdiff_t margin_px, Image<T> out) {
    if (margin_px < 0 || 2 * margin_px >= tiles.size_px) {
        throw std::invalid_argument("margin_px: expected 0 or more and less than half of the tile's " +
                                    std::to_string(tiles.size_px) + " px, got " + std::to_string(margin_px));
    }
    const std::ptrdiff_t channels = out.channels;
    for (std::ptrdiff_t i = 0; i < tiles.count; ++i) {
        const std::ptrdiff_t top = origins[2 * i];
        const std::ptrdiff_t left = origins[2 * i + 1];
        const Overlap rows(top, tiles.size_px, margin_px, out.rows);
        const Overlap cols(left, tiles.size_px, margin_px, out.cols);
        if (cols.begin == cols.end) continue;
        for (std::ptrdiff_t r = rows.begin; r < rows.end; ++r) {
            std::copy_n(tiles.row(i, r) + cols.begin * channels, (cols.end - cols.begin) * channels,
                        out.row(top + r) + (left + cols.begin) * channels);
        }
    }
}

template <typename T>
void blend(Tiles<const T> tiles, const std::int32_t* origins, Plane<const float> window, Image<float> out) {
    for (std::ptrdiff_t k = 0; k < window.size(); ++k) {
        if (!(window.data[k] >= 0 && std::isfinite(window.data[k]))) {
            throw std::invalid_argument("window: expected finite values >= 0, got " +
                                        std::to_string(window.data[k]));
        }
    }
    const std::ptrdiff_t channels = out.channels;
    std::vector<float> weights(static_cast<std::size_t>(out.rows * out.cols));
    std::fill_n(out.data, out.size(), 0.0F);
    for (std::ptrdiff_t i = 0; i < tiles.count; ++i) {
        const std::ptrdiff_t top = origins[2 * i];
        const std::ptrdiff_t left = origins[2 * i + 1];
        const Overlap rows(top, tiles.size_px, 0, out.rows);
        const Overlap cols(left, tiles.size_px, 0, out.cols);
        if (cols.begin == cols.end) continue;
        for (std::ptrdiff_t r = rows.begin; r < rows.end; ++r) {
            const std::ptrdiff_t count = cols.end - cols.begin;
            const T* from = tiles.row(i, r) + cols.begin * channels;
            const float* factor = window.row(r) + cols.begin;
            float* sum = out.row(top + r) + (left + cols.begin) * channels;
            float* weight = weights.data() + (top + r) * out.cols + left + cols.begin;
            for (std::ptrdiff_t c = 0; c < count; ++c) weight[c] += factor[c];
            if (channels == 1) {
                add_weighted<1>(from, factor, count, 1, sum);
            } else if (channels == 3) {
                add_weighted<3>(from, factor, count, 3, sum);
            } else {
                add_weighted<0>(from, factor, count, channels, sum);
            }
        }
    }
    for (std::ptrdiff_t c = 0; c < out.rows * out.cols; ++c) {
        const float weight = weights[c] > 0 ? weights[c] : 1;  // no weight: the sum is 0 already
        for (std::ptrdiff_t k = 0; k < channels; ++k) out.data[c * channels + k] /= weight;
    }
}

template void stitch(Tiles<const std::uint8_t>, const std::int32_t*, std::ptrdiff_t, Image<std::uint8_t>);
template void stitch(Tiles<const float>, const std::int32_t*, std::ptrdiff_t, Image<float>);
template void blend(Tiles<const std::uint8_t>, const std::int32_t*, Plane<const float>, Image<float>);
template void blend(Tiles<const float>, const std::int32_t*, Plane<const float>, Image<float>);

}  // namespace nucfast
