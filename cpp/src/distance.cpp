#include "nucfast/distance.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "nucfast/components.hpp"
#include "nucfast/parallel.hpp"

namespace nucfast {

namespace {

template <typename T>
void append_runs(const T* row, std::ptrdiff_t cols, std::vector<std::uint8_t>&, std::vector<Run>& runs) {
    const RunComponents found = run_components(Plane<const T>{row, 1, cols}, 4, 1);
    runs.insert(runs.end(), found.runs.begin(), found.runs.end());
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::ptrdiff_t kLanes = 32;
// A search that has tried all k <= kDistanceReach is exact up to the square of kDistanceReach + 1; everything
// above is cut off here, far enough below the limit of 16 bits that k^2 can be added.
constexpr std::int16_t kFar = 16000;
constexpr std::int16_t kExact = (kDistanceReach + 1) * (kDistanceReach + 1);
static_assert(kExact < kFar && kFar + kExact <= std::numeric_limits<std::int16_t>::max());

// The value by which pixels are told apart: NumPy's bool may hold any byte.
template <typename T>
auto value_at(const T* row, std::ptrdiff_t c) {
    if constexpr (std::is_same_v<T, bool>) {
        return static_cast<std::uint8_t>(reinterpret_cast<const std::uint8_t*>(row)[c] != 0);
    } else {
        return row[c];
    }
}

// One step of a vertical sweep: `depth` holds the distances of the neighbouring row and becomes those of
// `row`.
template <typename T>
void step(const T* row, const T* neighbour, std::ptrdiff_t cols, const float* before, float* depth) {
    for (std::ptrdiff_t c = 0; c < cols; ++c) {
        const auto value = value_at(row, c);
        const float inside = value == value_at(neighbour, c) ? before[c] + 1.0F : 1.0F;
        depth[c] = value == 0 ? 0.0F : inside;
    }
}

// Vertical distances of row `from`, looking only at the rows in `direction` (+1 or -1): what a sweep over the
// whole image would have there. Stops as soon as every column has met another value.
template <typename T>
void depth_from(Plane<const T> image, std::ptrdiff_t from, std::ptrdiff_t direction, float* depth) {
    const T* row = image.row(from);
    for (std::ptrdiff_t c = 0; c < image.cols; ++c) depth[c] = value_at(row, c) == 0 ? 0.0F : kInfinity;
    float distance = 1.0F;
    for (auto r = from + direction; r >= 0 && r < image.rows; r += direction, distance += 1.0F) {
        const T* other = image.row(r);
        bool open = false;
        for (std::ptrdiff_t c = 0; c < image.cols; ++c) {
            if (depth[c] != kInfinity) continue;
            if (value_at(other, c) != value_at(row, c)) {
                depth[c] = distance;
            } else {
                open = true;
            }
        }
        if (!open) break;
    }
}

struct Parabola {
    std::int64_t at = 0;      // column of its lowest point
    std::int64_t height = 0;  // squared vertical distance there
    std::int64_t from = 0;    // first column where it is the lowest of all
};

// Everything one thread needs to turn the vertical distances of a row into the result.
class RowPass {
  public:
    explicit RowPass(std::ptrdiff_t cols)
        : cols_(cols),
          columns_(static_cast<std::size_t>(cols + 2 * kDistanceReach + kLanes), kFar),
          nearest_(static_cast<std::size_t>(cols + kLanes)) {}

    template <typename T>
    void operator()(const T* row, const float* depth, float* out) {
        runs_.clear();
        append_runs(row, cols_, scratch_, runs_);
        std::int16_t* columns = columns_.data() + kDistanceReach;
        for (std::ptrdiff_t c = 0; c < cols_; ++c) {
            const auto limited = static_cast<std::int32_t>(std::min(depth[c], 126.0F));
            columns[c] = static_cast<std::int16_t>(limited * limited);
        }
        std::fill(nearest_.begin(), nearest_.end(), std::int16_t{0});
        for (const Run run : runs_) within_run(run, columns);
        for (std::ptrdiff_t c = 0; c < cols_; c += kLanes) search(columns + c, nearest_.data() + c);
        for (std::ptrdiff_t c = 0; c < cols_; ++c) out[c] = std::sqrt(static_cast<float>(nearest_[c]));
        for (const Run run : runs_) {
            const std::int16_t* begin = nearest_.data() + run.begin;
            const std::int16_t* end = nearest_.data() + run.end;
            if (std::any_of(begin, end, [](auto d) { return d > kExact; })) {
                envelope(run, depth, out);
            }
        }
    }

  private:
    // What the pixel's own column and the ends of its run allow.
    void within_run(Run run, const std::int16_t* columns) {
        const std::int32_t left = run.begin > 0 ? 1 : 126;
        const std::int32_t right = run.end < cols_ ? 0 : 126;
        for (std::int32_t c = run.begin; c < run.end; ++c) {
            const std::int32_t side = std::min({c - run.begin + left, run.end - c + right, 126});
            nearest_[c] = std::min(static_cast<std::int16_t>(side * side), columns[c]);
        }
    }

    static std::int16_t highest(const std::int16_t* values) {
        std::int16_t result = 0;
        for (std::ptrdiff_t i = 0; i < kLanes; ++i) result = values[i] > result ? values[i] : result;
        return result;
    }

    // Columns of neighbouring runs are seen too, but cannot win: the end of the pixel's run is nearer.
    static void search(const std::int16_t* columns, std::int16_t* nearest) {
        std::int16_t best[kLanes];
        std::copy(nearest, nearest + kLanes, best);
        std::int16_t worst = highest(best);
        for (int k = 1; k <= kDistanceReach && k * k < worst; ++k) {
            const auto square = static_cast<std::int16_t>(k * k);
            for (std::ptrdiff_t i = 0; i < kLanes; ++i) {
                const std::int16_t left = columns[i - k];
                const std::int16_t right = columns[i + k];
                const auto found = static_cast<std::int16_t>((left < right ? left : right) + square);
                best[i] = found < best[i] ? found : best[i];
            }
            if (k % 4 == 0) worst = highest(best);
        }
        std::copy(best, best + kLanes, nearest);
    }

    void envelope(Run run, const float* depth, float* out) {
        parabolas_.clear();
        if (run.begin > 0) add(run.begin - 1, 0, run.begin, run.end);
        for (std::int64_t c = run.begin; c < run.end; ++c) {
            if (depth[c] == kInfinity) continue;
            const auto column = static_cast<std::int64_t>(depth[c]);
            add(c, column * column, run.begin, run.end);
        }
        if (run.end < cols_) add(run.end, 0, run.begin, run.end);
        if (parabolas_.empty()) {
            std::fill(out + run.begin, out + run.end, kInfinity);
            return;
        }
        for (std::size_t i = 0; i < parabolas_.size(); ++i) {
            const Parabola p = parabolas_[i];
            const std::int64_t end = i + 1 < parabolas_.size() ? parabolas_[i + 1].from : run.end;
            for (auto c = p.from; c < end; ++c) {
                const std::int64_t square = (c - p.at) * (c - p.at) + p.height;
                out[c] = static_cast<float>(std::sqrt(static_cast<double>(square)));
            }
        }
    }

    // Puts one more parabola, right of all others, under the envelope of columns [begin, end).
    void add(std::int64_t at, std::int64_t height, std::int64_t begin, std::int64_t end) {
        const auto value = [](const Parabola& p, std::int64_t c) {
            return (c - p.at) * (c - p.at) + p.height;
        };
        const Parabola added{at, height, begin};
        while (!parabolas_.empty() &&
               value(added, parabolas_.back().from) < value(parabolas_.back(), parabolas_.back().from)) {
            parabolas_.pop_back();
        }
        if (parabolas_.empty()) {
            parabolas_.push_back(added);
            return;
        }
        // The last one is no higher at its own start, so the crossing is not left of it and the numerator,
        // taken relative to that start, is not negative: truncation rounds down.
        const Parabola& last = parabolas_.back();
        const std::int64_t start = last.from;
        const std::int64_t from =
            start + (value(added, start) - value(last, start)) / (2 * (at - last.at)) + 1;
        if (from < end) parabolas_.push_back({at, height, from});
    }

    std::ptrdiff_t cols_;
    std::vector<std::int16_t> columns_;  // squared vertical distances, kFar left and right of the row
    std::vector<std::int16_t> nearest_;
    std::vector<std::uint8_t> scratch_;
    std::vector<Run> runs_;
    std::vector<Parabola> parabolas_;
};

}  // namespace

template <typename T>
void distance_transform(Plane<const T> image, int threads, Plane<float> out) {
    if (image.size() == 0) return;
    const std::ptrdiff_t cols = image.cols;
    parallel_for(image.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        std::vector<float> below(static_cast<std::size_t>(cols));
        std::vector<float> depth(static_cast<std::size_t>(cols));
        depth_from(image, first, -1, out.row(first));
        for (auto r = first + 1; r < last; ++r) {
            step(image.row(r), image.row(r - 1), cols, out.row(r - 1), out.row(r));
        }
        RowPass finish(cols);
        depth_from(image, last - 1, +1, below.data());
        for (auto r = last - 1; r >= first; --r) {
            if (r < last - 1) step(image.row(r), image.row(r + 1), cols, below.data(), below.data());
            const float* above = out.row(r);
            for (std::ptrdiff_t c = 0; c < cols; ++c) depth[c] = std::min(above[c], below[c]);
            finish(image.row(r), depth.data(), out.row(r));
        }
    });
}

template void distance_transform(Plane<const bool>, int, Plane<float>);
template void distance_transform(Plane<const Label>, int, Plane<float>);

}  // namespace nucfast
