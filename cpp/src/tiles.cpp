#include "nucfast/tiles.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "nucfast/dispatch.hpp"
#include "nucfast/parallel.hpp"
#include "nucfast/stream.hpp"

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

// Copies row `r` of the window at (top, left), pixels outside the image as `fill`.
void copy_row(Image<const std::uint8_t> image, std::ptrdiff_t top, std::ptrdiff_t left, std::ptrdiff_t r,
              std::uint8_t fill, bool streaming, Tiles<std::uint8_t> out, std::uint8_t* to) {
    const std::ptrdiff_t channels = image.channels;
    const std::ptrdiff_t row_bytes = out.size_px * channels;
    const Overlap cols(left, out.size_px, 0, image.cols);
    if (top + r < 0 || top + r >= image.rows || cols.begin == cols.end) {
        std::fill_n(to, row_bytes, fill);
        return;
    }
    const std::uint8_t* from = image.row(top + r) + (left + cols.begin) * channels;
    const std::ptrdiff_t begin = cols.begin * channels;
    const std::ptrdiff_t end = cols.end * channels;
    std::fill_n(to, begin, fill);
    if (streaming) {
        stream_copy(from, to + begin, end - begin);
    } else {
        std::copy_n(from, end - begin, to + begin);
    }
    std::fill(to + end, to + row_bytes, fill);
}

// sum[k] += factor[k] * from[k]
template <typename T>
NUCFAST_INLINE void add_weighted_body(const T* from, const float* factor, std::ptrdiff_t count, float* sum) {
    for (std::ptrdiff_t k = 0; k < count; ++k) sum[k] += factor[k] * static_cast<float>(from[k]);
}
NUCFAST_VARIANTS(void, add_weighted,
                 (const float* from, const float* factor, std::ptrdiff_t count, float* sum),
                 (from, factor, count, sum))
NUCFAST_VARIANTS(void, add_weighted,
                 (const std::uint8_t* from, const float* factor, std::ptrdiff_t count, float* sum),
                 (from, factor, count, sum))

// weight[c] += factor[c]
NUCFAST_INLINE void add_body(const float* factor, std::ptrdiff_t count, float* weight) {
    for (std::ptrdiff_t c = 0; c < count; ++c) weight[c] += factor[c];
}
NUCFAST_VARIANTS(void, add, (const float* factor, std::ptrdiff_t count, float* weight),
                 (factor, count, weight))

// Each value as often as a pixel has channels, so that the loops above run over plain arrays.
NUCFAST_INLINE void repeat_body(const float* values, std::ptrdiff_t count, std::ptrdiff_t channels,
                                float* out) {
    if (channels == 3) {
        for (std::ptrdiff_t c = 0; c < count; ++c) {
            for (std::ptrdiff_t k = 0; k < 3; ++k) out[3 * c + k] = values[c];
        }
        return;
    }
    for (std::ptrdiff_t c = 0; c < count; ++c) std::fill_n(out + c * channels, channels, values[c]);
}
NUCFAST_VARIANTS(void, repeat,
                 (const float* values, std::ptrdiff_t count, std::ptrdiff_t channels, float* out),
                 (values, count, channels, out))

NUCFAST_INLINE void reciprocals_body(float* weight, std::ptrdiff_t count) {
    for (std::ptrdiff_t c = 0; c < count; ++c) weight[c] = weight[c] > 0 ? 1 / weight[c] : 0;
}
NUCFAST_VARIANTS(void, reciprocals, (float* weight, std::ptrdiff_t count), (weight, count))

// sum[k] *= factor[k]. Returns whether all sums were finite.
NUCFAST_INLINE bool scale_body(const float* factor, std::ptrdiff_t count, float* sum) {
    int bad = 0;
    for (std::ptrdiff_t k = 0; k < count; ++k) {
        bad |= !(std::fabs(sum[k]) <= std::numeric_limits<float>::max());
        sum[k] *= factor[k];
    }
    return bad == 0;
}
NUCFAST_VARIANTS(bool, scale, (const float* factor, std::ptrdiff_t count, float* sum), (factor, count, sum))

}  // namespace

void tile(Image<const std::uint8_t> image, const std::int32_t* origins, std::uint8_t fill,
          Tiles<std::uint8_t> out, int threads) {
    std::vector<std::ptrdiff_t> bands;  // first window of each
    for (std::ptrdiff_t i = 0; i < out.count; ++i) {
        if (i == 0 || origins[2 * i] != origins[2 * i - 2]) bands.push_back(i);
    }
    const auto band_count = static_cast<std::ptrdiff_t>(bands.size());
    bands.push_back(out.count);
    const bool streaming = out.count * out.size_px * out.size_px * out.channels >= streaming_bytes;
    parallel_for(band_count * out.size_px, threads, [&](std::ptrdiff_t begin, std::ptrdiff_t end, int) {
        for (std::ptrdiff_t row = begin; row < end; ++row) {
            const std::ptrdiff_t band = row / out.size_px;
            const std::ptrdiff_t r = row % out.size_px;
            for (std::ptrdiff_t i = bands[band]; i < bands[band + 1]; ++i) {
                copy_row(image, origins[2 * i], origins[2 * i + 1], r, fill, streaming, out, out.row(i, r));
            }
        }
        if (streaming) stream_fence();
    });
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
void blend(Tiles<const T> tiles, const std::int32_t* origins, Plane<const float> window, Image<float> out,
           int threads) {
    for (std::ptrdiff_t k = 0; k < window.size(); ++k) {
        if (!(window.data[k] >= 0 && std::isfinite(window.data[k]))) {
            throw std::invalid_argument("window: expected finite values >= 0, got " +
                                        std::to_string(window.data[k]));
        }
    }
    const std::ptrdiff_t channels = out.channels;
    std::vector<std::ptrdiff_t> by_top(static_cast<std::size_t>(tiles.count));
    std::iota(by_top.begin(), by_top.end(), 0);
    std::sort(by_top.begin(), by_top.end(),
              [&](std::ptrdiff_t a, std::ptrdiff_t b) { return origins[2 * a] < origins[2 * b]; });
    const bool streaming = out.size() * static_cast<std::ptrdiff_t>(sizeof(float)) >= streaming_bytes;

    parallel_for(out.rows, threads, [&](std::ptrdiff_t begin, std::ptrdiff_t end, int) {
        std::vector<float> sum(static_cast<std::size_t>(out.cols * channels));
        std::vector<float> weight(static_cast<std::size_t>(out.cols));
        std::vector<float> factor(static_cast<std::size_t>(std::max(out.cols, tiles.size_px) * channels));
        std::vector<std::ptrdiff_t> present;  // the tiles that this row crosses, in their order
        auto next = by_top.begin();
        bool finite = true;
        for (std::ptrdiff_t r = begin; r < end; ++r) {
            const auto is_past = [&](std::ptrdiff_t i) { return origins[2 * i] + tiles.size_px <= r; };
            present.erase(std::remove_if(present.begin(), present.end(), is_past), present.end());
            for (; next != by_top.end() && origins[2 * *next] <= r; ++next) {
                const Overlap cols(origins[2 * *next + 1], tiles.size_px, 0, out.cols);
                if (is_past(*next) || cols.begin == cols.end) continue;
                present.insert(std::lower_bound(present.begin(), present.end(), *next), *next);
            }
            std::fill(sum.begin(), sum.end(), 0.0F);
            std::fill(weight.begin(), weight.end(), 0.0F);
            std::ptrdiff_t repeated = -1;  // the row of the window that `factor` holds
            for (const std::ptrdiff_t i : present) {
                const std::ptrdiff_t row = r - origins[2 * i];
                const std::ptrdiff_t left = origins[2 * i + 1];
                const Overlap cols(left, tiles.size_px, 0, out.cols);
                const std::ptrdiff_t count = cols.end - cols.begin;
                if (row != repeated) repeat(window.row(row), tiles.size_px, channels, factor.data());
                repeated = row;
                add(window.row(row) + cols.begin, count, weight.data() + left + cols.begin);
                add_weighted(tiles.row(i, row) + cols.begin * channels, factor.data() + cols.begin * channels,
                             count * channels, sum.data() + (left + cols.begin) * channels);
            }
            reciprocals(weight.data(), out.cols);
            repeat(weight.data(), out.cols, channels, factor.data());
            finite &= scale(factor.data(), out.cols * channels, sum.data());
            const auto bytes = out.cols * channels * static_cast<std::ptrdiff_t>(sizeof(float));
            if (streaming) {
                stream_copy(sum.data(), out.row(r), bytes);
            } else {
                std::copy(sum.begin(), sum.end(), out.row(r));
            }
        }
        if (streaming) stream_fence();
        if (!finite) {
            throw std::invalid_argument(
                "tiles: expected finite values with finite weighted sums, got others");
        }
    });
}

void pixel_shuffle(const std::uint8_t* planes, std::ptrdiff_t block, Plane<std::uint8_t> out) {
    const std::ptrdiff_t rows = out.rows / block;
    const std::ptrdiff_t cols = out.cols / block;
    for (std::ptrdiff_t r = 0; r < out.rows; ++r) {
        const std::uint8_t* from = planes + (r % block * block * rows + r / block) * cols;
        std::uint8_t* to = out.row(r);
        if (block == 2) {  // what networks have, in a form that compiles to vectors
            const std::uint8_t* odd = from + rows * cols;
            for (std::ptrdiff_t c = 0; c < cols; ++c) {
                to[2 * c] = from[c];
                to[2 * c + 1] = odd[c];
            }
            continue;
        }
        for (std::ptrdiff_t x = 0; x < block; ++x) {
            for (std::ptrdiff_t c = 0; c < cols; ++c) to[c * block + x] = from[x * rows * cols + c];
        }
    }
}

template void stitch(Tiles<const std::uint8_t>, const std::int32_t*, std::ptrdiff_t, Image<std::uint8_t>);
template void stitch(Tiles<const float>, const std::int32_t*, std::ptrdiff_t, Image<float>);
template void blend(Tiles<const std::uint8_t>, const std::int32_t*, Plane<const float>, Image<float>, int);
template void blend(Tiles<const float>, const std::int32_t*, Plane<const float>, Image<float>, int);

}  // namespace nucfast
