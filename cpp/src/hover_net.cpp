#include "nucfast/hover_net.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "nucfast/components.hpp"
#include "nucfast/dispatch.hpp"
#include "nucfast/parallel.hpp"
#include "nucfast/watershed.hpp"

namespace nucfast {

namespace {

constexpr int kReach = 10;
constexpr int kTaps = 2 * kReach + 1;
using Taps = std::array<float, kTaps>;

// Coefficients of (1 + x)^20, or of (1 + x)^19 (x - 1), which differentiates; divided by 2^20.
constexpr Taps make_taps(bool derivative) {
    std::array<double, kTaps> taps = {1.0};
    for (int power = 1; power < kTaps; ++power) {
        const double sign = derivative && power + 1 == kTaps ? -1.0 : 1.0;
        for (int i = power; i > 0; --i) taps[i] = sign * taps[i] + taps[i - 1];
        taps[0] *= sign;
    }
    Taps scaled = {};
    for (int i = 0; i < kTaps; ++i) scaled[i] = static_cast<float>(taps[i] / (1 << 20));
    return scaled;
}
constexpr Taps kSmooth = make_taps(false);
constexpr Taps kDerive = make_taps(true);

// Index of a row or column beyond the border, mirrored on the border pixel's centre.
std::ptrdiff_t reflected(std::ptrdiff_t i, std::ptrdiff_t count) {
    if (count == 1) return 0;
    while (i < 0 || i >= count) i = i < 0 ? -i : 2 * (count - 1) - i;
    return i;
}

struct Range {
    float low = std::numeric_limits<float>::infinity();
    float high = -std::numeric_limits<float>::infinity();

    void add(const Range& other) {
        low = std::min(low, other.low);
        high = std::max(high, other.high);
    }
};

constexpr std::ptrdiff_t kLanes = 16;

// Both taps in turn, for values that are interleaved.
constexpr std::array<std::array<float, kLanes>, kTaps> make_alternating() {
    std::array<std::array<float, kLanes>, kTaps> taps = {};
    for (int k = 0; k < kTaps; ++k) {
        for (int lane = 0; lane < kLanes; ++lane) taps[k][lane] = lane % 2 == 0 ? kSmooth[k] : kDerive[k];
    }
    return taps;
}
constexpr auto kAlternating = make_alternating();

// Filters down the columns of interleaved horizontal and vertical values: the former are smoothed, the latter
// differentiated. `count` floats per row.
NUCFAST_INLINE void filter_columns_body(const float* const* rows, std::ptrdiff_t count, float* out) {
    std::ptrdiff_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        float sum[kLanes] = {};
        for (int k = 0; k < kTaps; ++k) {
            const float* row = rows[k] + i;
            const float* taps = kAlternating[k].data();
            for (std::ptrdiff_t lane = 0; lane < kLanes; ++lane) sum[lane] += row[lane] * taps[lane];
        }
        for (std::ptrdiff_t lane = 0; lane < kLanes; ++lane) out[i + lane] = sum[lane];
    }
    for (; i < count; ++i) {
        float sum = 0;
        for (int k = 0; k < kTaps; ++k) sum += rows[k][i] * kAlternating[k][i % 2];
        out[i] = sum;
    }
}
NUCFAST_VARIANTS(void, filter_columns, (const float* const* rows, std::ptrdiff_t count, float* out),
                 (rows, count, out))

// Filters along a row. `row` has kReach more values on either side and, as `out`, whole blocks of kLanes.
NUCFAST_INLINE void filter_row_body(const float* row, std::ptrdiff_t cols, const Taps& taps, float* out) {
    for (std::ptrdiff_t c = 0; c < cols; c += kLanes) {
        float sum[kLanes] = {};
        for (int k = 0; k < kTaps; ++k) {
            const float tap = taps[k];
            for (std::ptrdiff_t lane = 0; lane < kLanes; ++lane)
                sum[lane] += row[c + lane + k - kReach] * tap;
        }
        for (std::ptrdiff_t lane = 0; lane < kLanes; ++lane) out[c + lane] = sum[lane];
    }
}
NUCFAST_VARIANTS(void, filter_row, (const float* row, std::ptrdiff_t cols, const Taps& taps, float* out),
                 (row, cols, taps, out))

// Ranges of the values at even and at odd places.
std::array<Range, 2> ranges_of(const float* values, std::ptrdiff_t count) {
    float low[kLanes];
    float high[kLanes];
    std::fill_n(low, kLanes, Range{}.low);
    std::fill_n(high, kLanes, Range{}.high);
    const auto add = [&](std::ptrdiff_t lane, float value) {
        low[lane] = value < low[lane] ? value : low[lane];
        high[lane] = value > high[lane] ? value : high[lane];
    };
    std::ptrdiff_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        for (std::ptrdiff_t lane = 0; lane < kLanes; ++lane) add(lane, values[i + lane]);
    }
    for (std::ptrdiff_t lane = 0; i + lane < count; ++lane) add(lane, values[i + lane]);
    std::array<Range, 2> ranges;
    for (std::ptrdiff_t lane = 0; lane < kLanes; ++lane) ranges[lane % 2].add({low[lane], high[lane]});
    return ranges;
}

bool all_finite(const float* values, std::ptrdiff_t count) {
    int bad = 0;
    for (std::ptrdiff_t i = 0; i < count; ++i) bad |= static_cast<int>(values[i] - values[i] != 0.0F);
    return bad == 0;
}

// Working memory that is written before it is read.
template <typename T>
class Scratch {
  public:
    Scratch(std::ptrdiff_t rows, std::ptrdiff_t cols)
        : data_(new T[rows * cols]), plane{data_.get(), rows, cols} {}

  private:
    std::unique_ptr<T[]> data_;

  public:
    const Plane<T> plane;
};

using Mask = Plane<std::uint8_t>;  // 0 or 1

Plane<const bool> as_bool(Mask mask) {
    return {reinterpret_cast<const bool*>(mask.data), mask.rows, mask.cols};
}

std::vector<std::int64_t> areas_of(const RunComponents& parts) {
    std::vector<std::int64_t> areas(static_cast<std::size_t>(parts.count) + 1, 0);
    for (std::size_t i = 0; i < parts.runs.size(); ++i) {
        areas[parts.labels[i]] += parts.runs[i].end - parts.runs[i].begin;
    }
    return areas;
}

// Sets to `value` the runs of those parts for which `chosen` is not zero.
void paint(const RunComponents& parts, const std::vector<Label>& chosen, std::uint8_t value, Mask mask) {
    for (std::ptrdiff_t r = 0; r < mask.rows; ++r) {
        for (auto i = parts.row_begin[r]; i < parts.row_begin[r + 1]; ++i) {
            if (chosen[parts.labels[i]] == 0) continue;
            std::fill(mask.row(r) + parts.runs[i].begin, mask.row(r) + parts.runs[i].end, value);
        }
    }
}

void remove_small_parts(Mask mask, int min_px, int threads) {
    const RunComponents parts = run_components(as_bool(mask), 4, threads);
    const std::vector<std::int64_t> areas = areas_of(parts);
    std::vector<Label> small(areas.size(), 0);
    for (std::size_t part = 1; part < areas.size(); ++part) small[part] = areas[part] < min_px;
    paint(parts, small, 0, mask);
}

void fill_holes(Mask mask, Mask scratch, int threads) {
    for (std::ptrdiff_t i = 0; i < mask.size(); ++i) scratch.data[i] = mask.data[i] ^ 1U;
    const RunComponents parts = run_components(as_bool(scratch), 4, threads);
    std::vector<Label> hole(static_cast<std::size_t>(parts.count) + 1, 1);
    for (std::ptrdiff_t r = 0; r < mask.rows; ++r) {
        const bool edge = r == 0 || r + 1 == mask.rows;
        for (auto i = parts.row_begin[r]; i < parts.row_begin[r + 1]; ++i) {
            if (edge || parts.runs[i].begin == 0 || parts.runs[i].end == mask.cols) hole[parts.labels[i]] = 0;
        }
    }
    paint(parts, hole, 1, mask);
}

// Dilation, with `flip` 1 erosion, by the disc of rows of 1, 5, 5, 5 and 1 pixels, in two steps: `column` is
// any of three rows, `out` any of five of those and of the outer two rows. Plain pointers and values, so that
// compilers see that nothing changes on the way.
void any_of_three(const std::uint8_t* above, const std::uint8_t* here, const std::uint8_t* below,
                  std::uint8_t flip, std::ptrdiff_t cols, std::uint8_t* column) {
    for (std::ptrdiff_t c = 0; c < cols; ++c) {
        column[c] = static_cast<std::uint8_t>((above[c] ^ flip) | (here[c] ^ flip) | (below[c] ^ flip));
    }
}

void any_of_disc(const std::uint8_t* column, const std::uint8_t* top, const std::uint8_t* bottom,
                 std::uint8_t flip, std::ptrdiff_t cols, std::uint8_t* out) {
    for (std::ptrdiff_t c = 0; c < cols; ++c) {
        const auto any = column[c - 2] | column[c - 1] | column[c] | column[c + 1] | column[c + 2] |
                         (top[c] ^ flip) | (bottom[c] ^ flip);
        out[c] = static_cast<std::uint8_t>(any ^ flip);
    }
}

// Erodes by the disc if `erode`, else dilates; beyond the border nothing counts.
void with_disc(Plane<const std::uint8_t> in, bool erode, int threads, Mask out) {
    const auto flip = static_cast<std::uint8_t>(erode ? 1 : 0);  // eroding is dilating the rest
    parallel_for(in.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        std::vector<std::uint8_t> padded(static_cast<std::size_t>(in.cols) + 4, 0);
        std::uint8_t* const column = padded.data() + 2;
        for (std::ptrdiff_t r = first; r < last; ++r) {
            const auto row = [&](std::ptrdiff_t i) { return i >= 0 && i < in.rows ? in.row(i) : in.row(r); };
            any_of_three(row(r - 1), in.row(r), row(r + 1), flip, in.cols, column);
            any_of_disc(column, row(r - 2), row(r + 2), flip, in.cols, out.row(r));
        }
    });
}

// Numbers the 4-connected parts of at least `min_px` pixels.
Label label_large_parts(Mask mask, int min_px, int threads, Plane<Label> labels) {
    const RunComponents parts = run_components(as_bool(mask), 4, threads);
    const std::vector<std::int64_t> areas = areas_of(parts);
    std::vector<Label> number(areas.size(), 0);
    Label count = 0;
    for (std::size_t part = 1; part < areas.size(); ++part) {
        if (areas[part] >= min_px) number[part] = ++count;
    }
    parallel_for(mask.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        std::fill(labels.row(first), labels.row(last), 0);
        for (std::ptrdiff_t r = first; r < last; ++r) {
            for (auto i = parts.row_begin[r]; i < parts.row_begin[r + 1]; ++i) {
                std::fill(labels.row(r) + parts.runs[i].begin, labels.row(r) + parts.runs[i].end,
                          number[parts.labels[i]]);
            }
        }
    });
    return count;
}

// Applies both Sobel operators. Returns the ranges of the results, of a constant map those of zero: what
// rounding makes of it is no edge.
std::array<Range, 2> differentiate(Image<const float> hv, int threads, Plane<float> horizontal,
                                   Plane<float> vertical) {
    const std::ptrdiff_t cols = hv.cols;
    const std::ptrdiff_t padded = (cols + kLanes - 1) / kLanes * kLanes;
    struct Ranges {
        std::array<Range, 2> in;
        std::array<Range, 2> out;
    };
    std::vector<Ranges> pieces(static_cast<std::size_t>(std::max(threads, 1)));
    parallel_for(hv.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int piece) {
        std::vector<float> filtered(static_cast<std::size_t>(2 * cols));
        std::vector<float> result(static_cast<std::size_t>(padded));
        std::array<std::vector<float>, 2> split;
        for (auto& row : split) row.assign(static_cast<std::size_t>(padded + 2 * kReach), 0.0F);
        std::array<const float*, kTaps> rows;
        Ranges& ranges = pieces[static_cast<std::size_t>(piece)];
        for (std::ptrdiff_t r = first; r < last; ++r) {
            if (!all_finite(hv.row(r), 2 * cols)) {
                throw std::invalid_argument("hv_map: expected finite values, got NaN or infinity");
            }
            const std::array<Range, 2> in = ranges_of(hv.row(r), 2 * cols);
            for (int map = 0; map < 2; ++map) ranges.in[map].add(in[map]);
            for (int k = 0; k < kTaps; ++k) rows[k] = hv.row(reflected(r + k - kReach, hv.rows));
            filter_columns(rows.data(), 2 * cols, filtered.data());
            for (int map = 0; map < 2; ++map) {
                float* const row = split[map].data() + kReach;
                for (std::ptrdiff_t c = 0; c < cols; ++c) row[c] = filtered[2 * c + map];
                for (std::ptrdiff_t c = 1; c <= kReach; ++c) {
                    row[-c] = row[reflected(-c, cols)];
                    row[cols - 1 + c] = row[reflected(cols - 1 + c, cols)];
                }
                filter_row(row, cols, map == 0 ? kDerive : kSmooth, result.data());
                std::copy_n(result.data(), cols, (map == 0 ? horizontal : vertical).row(r));
                for (const Range& range : ranges_of(result.data(), cols)) ranges.out[map].add(range);
            }
        }
    });
    Ranges all;
    for (const Ranges& piece : pieces) {
        for (int map = 0; map < 2; ++map) {
            all.in[map].add(piece.in[map]);
            all.out[map].add(piece.out[map]);
        }
    }
    for (int map = 0; map < 2; ++map) {
        if (all.in[map].low == all.in[map].high) all.out[map] = {0.0F, 0.0F};
    }
    return all.out;
}

}  // namespace

Label hover_net_labels(Plane<const float> probability, Image<const float> hv,
                       const HoverNetSettings& settings, int threads, Plane<Label> labels) {
    if (labels.size() > std::numeric_limits<std::int32_t>::max()) {
        throw std::length_error("probability: expected fewer than 2^31 pixels, got " +
                                std::to_string(labels.size()));
    }
    if (labels.size() == 0) return 0;
    const std::ptrdiff_t rows = labels.rows;
    const std::ptrdiff_t cols = labels.cols;
    // `flatness` first holds the horizontal derivative.
    const Scratch<float> flatness(rows, cols);
    const Scratch<float> vertical(rows, cols);
    const std::array<Range, 2> ranges = differentiate(hv, threads, flatness.plane, vertical.plane);

    const Scratch<std::uint8_t> blobs(rows, cols);
    for (std::ptrdiff_t i = 0; i < labels.size(); ++i) {
        blobs.plane.data[i] = static_cast<std::uint8_t>(probability.data[i] >= settings.nucleus_threshold);
    }
    remove_small_parts(blobs.plane, settings.min_px, threads);

    // Flatness is 1 - edge strength, 0 outside the blobs. A constant map counts as steep everywhere, since
    // each of its derivatives is the lowest.
    const auto scale = [](const Range& range) {
        return range.high > range.low ? 1.0F / (range.high - range.low) : 0.0F;
    };
    const float scales[] = {scale(ranges[0]), scale(ranges[1])};
    const Scratch<std::uint8_t> seeds(rows, cols);
    const Scratch<std::uint8_t> scratch(rows, cols);
    parallel_for(rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        float* const flat = flatness.plane.data;
        for (std::ptrdiff_t i = first * cols; i < last * cols; ++i) {
            const float h = (flat[i] - ranges[0].low) * scales[0];
            const float v = (vertical.plane.data[i] - ranges[1].low) * scales[1];
            const float least = h < v ? h : v;
            const std::uint8_t inside = blobs.plane.data[i];
            flat[i] = inside != 0 ? least : 0.0F;
            seeds.plane.data[i] = static_cast<std::uint8_t>(
                inside & static_cast<std::uint8_t>(1.0F - least < settings.edge_threshold));
        }
    });
    fill_holes(seeds.plane, scratch.plane, threads);
    const Plane<const std::uint8_t> filled{seeds.plane.data, rows, cols};
    with_disc(filled, true, threads, scratch.plane);
    with_disc({scratch.plane.data, rows, cols}, false, threads, seeds.plane);
    const Label count = label_large_parts(seeds.plane, settings.min_px, threads, labels);

    const Mask energy = scratch.plane;
    parallel_for(rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        std::vector<float> padded(static_cast<std::size_t>(cols) + 2);
        float* const column = padded.data() + 1;
        for (std::ptrdiff_t r = first; r < last; ++r) {
            const float* above = flatness.plane.row(reflected(r - 1, rows));
            const float* here = flatness.plane.row(r);
            const float* below = flatness.plane.row(reflected(r + 1, rows));
            for (std::ptrdiff_t c = 0; c < cols; ++c) column[c] = above[c] + 2 * here[c] + below[c];
            column[-1] = column[reflected(-1, cols)];
            column[cols] = column[reflected(cols, cols)];
            std::uint8_t* const level = energy.row(r);
            for (std::ptrdiff_t c = 0; c < cols; ++c) {
                const float flat = column[c - 1] + 2 * column[c] + column[c + 1];  // 0..16
                level[c] =
                    static_cast<std::uint8_t>(static_cast<std::int32_t>(255.5F - flat * (255.0F / 16)));
            }
        }
    });
    watershed(Plane<const std::uint8_t>{energy.data, rows, cols}, as_bool(blobs.plane),
              Plane<const Label>{labels.data, rows, cols}, threads, labels);
    return count;
}

}  // namespace nucfast
