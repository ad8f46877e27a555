#include "nucfast/distance.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "nucfast/dispatch.hpp"
#include "nucfast/parallel.hpp"

namespace nucfast {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Vertical distances are cut off here and the search looks no further, so a square below kFar is exact: every
// pixel that could be nearer was looked at. Sums of two squares stay within 16 bits.
constexpr int kReach = kDistanceReach;
constexpr std::int16_t kFar = kReach * kReach;
static_assert(kReach < 128 && 2 * kFar <= std::numeric_limits<std::int16_t>::max());
constexpr std::uint8_t kDepth = 127;  // the bits of a byte that hold a depth; the last one tells a border
constexpr std::uint8_t kBorder = 128;

// The value by which pixels are told apart: NumPy's bool may hold any byte.
template <typename T>
auto value_at(const T* row, std::ptrdiff_t c) {
    if constexpr (std::is_same_v<T, bool>) {
        return static_cast<std::uint8_t>(reinterpret_cast<const std::uint8_t*>(row)[c] != 0);
    } else {
        return row[c];
    }
}

// --- objects up to the reach ----------------------------------------------------------------------------

NUCFAST_INLINE std::uint8_t deeper(std::uint8_t depth) {
    return static_cast<std::uint8_t>(depth + (depth < kReach));
}

// Depths below the next row up, of a mask. `depth` may be `before`.
NUCFAST_INLINE void step_mask_body(const std::uint8_t* row, std::ptrdiff_t cols, const std::uint8_t* before,
                                   std::uint8_t* depth) {
    for (std::ptrdiff_t c = 0; c < cols; ++c) depth[c] = row[c] != 0 ? deeper(before[c]) : 0;
}
NUCFAST_VARIANTS(void, step_mask,
                 (const std::uint8_t* row, std::ptrdiff_t cols, const std::uint8_t* before,
                  std::uint8_t* depth),
                 (row, cols, before, depth))

// The same of a label map; the highest bit tells that the pixel differs from the one to the left.
NUCFAST_INLINE void step_labels_body(const Label* row, const Label* above, std::ptrdiff_t cols,
                                     const std::uint8_t* before, std::uint8_t* depth) {
    if (cols > 0) {
        const std::uint8_t inside = row[0] == above[0] ? deeper(before[0] & kDepth) : 1;
        depth[0] = row[0] != 0 ? inside : 0;
    }
    for (std::ptrdiff_t c = 1; c < cols; ++c) {
        const std::uint8_t same = row[c] == above[c] ? 0xFF : 0;
        const std::uint8_t solid = row[c] != 0 ? 0xFF : 0;
        const std::uint8_t border = row[c] != row[c - 1] ? kBorder : 0;
        const std::uint8_t inside = (deeper(before[c] & kDepth) & same) | (1 & ~same);
        depth[c] = static_cast<std::uint8_t>((inside & solid) | border);
    }
}
NUCFAST_VARIANTS(void, step_labels,
                 (const Label* row, const Label* above, std::ptrdiff_t cols, const std::uint8_t* before,
                  std::uint8_t* depth),
                 (row, above, cols, before, depth))

// One row of the sweep up. The depths below tell whether a pixel continues: theirs are 2 or more if it does.
//
//   depth    of this row, from the sweep down
//   next     of the row below
//   below    in: depths above the row below; out: of this row
NUCFAST_INLINE void step_up_body(const std::uint8_t* depth, const std::uint8_t* next, std::ptrdiff_t cols,
                                 std::uint8_t* below) {
    for (std::ptrdiff_t c = 0; c < cols; ++c) {
        const std::uint8_t inside = (next[c] & kDepth) >= 2 ? deeper(below[c] & kDepth) : 1;
        below[c] = (depth[c] & kDepth) != 0 ? inside : 0;
    }
}
NUCFAST_VARIANTS(void, step_up,
                 (const std::uint8_t* depth, const std::uint8_t* next, std::ptrdiff_t cols,
                  std::uint8_t* below),
                 (depth, next, cols, below))

// Squares of the smaller depth.
NUCFAST_INLINE void square_body(const std::uint8_t* depth, const std::uint8_t* below, std::ptrdiff_t cols,
                                std::int16_t* squares) {
    for (std::ptrdiff_t c = 0; c < cols; ++c) {
        const std::uint8_t down = depth[c] & kDepth;
        const std::uint8_t up = below[c] & kDepth;
        const auto least = static_cast<std::int16_t>(down < up ? down : up);
        squares[c] = static_cast<std::int16_t>(least * least);
    }
}
NUCFAST_VARIANTS(void, square,
                 (const std::uint8_t* depth, const std::uint8_t* below, std::ptrdiff_t cols,
                  std::int16_t* squares),
                 (depth, below, cols, squares))

// What a pixel to the right sees of a run, and one to the left: the end it meets first is another value.
NUCFAST_INLINE void open_ends_body(const std::uint8_t* depth, const std::int16_t* squares,
                                   std::ptrdiff_t cols, std::int16_t* from_right, std::int16_t* from_left) {
    for (std::ptrdiff_t c = 0; c < cols; ++c) {
        from_left[c] = (depth[c] & kBorder) != 0 ? std::int16_t{0} : squares[c];
    }
    for (std::ptrdiff_t c = 0; c + 1 < cols; ++c) {
        from_right[c] = (depth[c + 1] & kBorder) != 0 ? std::int16_t{0} : squares[c];
    }
    if (cols > 0) from_right[cols - 1] = squares[cols - 1];
}
NUCFAST_VARIANTS(void, open_ends,
                 (const std::uint8_t* depth, const std::int16_t* squares, std::ptrdiff_t cols,
                  std::int16_t* from_right, std::int16_t* from_left),
                 (depth, squares, cols, from_right, from_left))

// out[c] = sqrt(min over k of k^2 + the square at c - k, seen from the right, or c + k, seen from the left),
// of kLanes columns. Returns whether all are below kFar, hence exact.
constexpr std::ptrdiff_t kLanes = 32;

bool search_plain(const std::int16_t* squares, const std::int16_t* from_right, const std::int16_t* from_left,
                  float* out) {
    std::int16_t best[kLanes];
    std::copy(squares, squares + kLanes, best);
    for (int k = 1; k < kReach; ++k) {
        const auto square = static_cast<std::int16_t>(k * k);
        std::int16_t worst = 0;
        for (std::ptrdiff_t i = 0; i < kLanes; ++i) worst = std::max(worst, best[i]);
        if (worst <= square) break;
        for (std::ptrdiff_t i = 0; i < kLanes; ++i) {
            const auto found =
                static_cast<std::int16_t>(std::min(from_right[i - k], from_left[i + k]) + square);
            best[i] = std::min(best[i], found);
        }
    }
    for (std::ptrdiff_t i = 0; i < kLanes; ++i) out[i] = std::sqrt(static_cast<float>(best[i]));
    return *std::max_element(best, best + kLanes) < kFar;
}

#if NUCFAST_X86
NUCFAST_AVX2 __m256i load_avx2(const std::int16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

NUCFAST_AVX2 void root_avx2(__m128i squares, float* out) {
    _mm256_storeu_ps(out, _mm256_sqrt_ps(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(squares))));
}

NUCFAST_AVX2 bool search_avx2(const std::int16_t* squares, const std::int16_t* from_right,
                              const std::int16_t* from_left, float* out) {
    __m256i low = load_avx2(squares);
    __m256i high = load_avx2(squares + 16);
    for (int k = 1; k < kReach; ++k) {
        const __m256i square = _mm256_set1_epi16(static_cast<std::int16_t>(k * k));
        if (_mm256_movemask_epi8(_mm256_cmpgt_epi16(_mm256_max_epi16(low, high), square)) == 0) break;
        const __m256i near_low = _mm256_min_epi16(load_avx2(from_right - k), load_avx2(from_left + k));
        const __m256i near_high =
            _mm256_min_epi16(load_avx2(from_right + 16 - k), load_avx2(from_left + 16 + k));
        low = _mm256_min_epi16(low, _mm256_add_epi16(near_low, square));
        high = _mm256_min_epi16(high, _mm256_add_epi16(near_high, square));
    }
    root_avx2(_mm256_castsi256_si128(low), out);
    root_avx2(_mm256_extracti128_si256(low, 1), out + 8);
    root_avx2(_mm256_castsi256_si128(high), out + 16);
    root_avx2(_mm256_extracti128_si256(high, 1), out + 24);
    const __m256i far = _mm256_set1_epi16(kFar - 1);
    return _mm256_movemask_epi8(_mm256_cmpgt_epi16(_mm256_max_epi16(low, high), far)) == 0;
}

NUCFAST_AVX512 void root_avx512(__m256i squares, float* out) {
    _mm512_storeu_ps(out, _mm512_sqrt_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(squares))));
}

NUCFAST_AVX512 bool search_avx512(const std::int16_t* squares, const std::int16_t* from_right,
                                  const std::int16_t* from_left, float* out) {
    __m512i best = _mm512_loadu_si512(squares);
    if (_mm512_test_epi16_mask(best, best) == 0) {
        _mm512_storeu_ps(out, _mm512_setzero_ps());
        _mm512_storeu_ps(out + 16, _mm512_setzero_ps());
        return true;
    }
    for (int k = 1; k < kReach; ++k) {
        const __m512i square = _mm512_set1_epi16(static_cast<std::int16_t>(k * k));
        if (_mm512_cmpgt_epi16_mask(best, square) == 0) break;
        const __m512i nearer =
            _mm512_min_epi16(_mm512_loadu_si512(from_right - k), _mm512_loadu_si512(from_left + k));
        best = _mm512_min_epi16(best, _mm512_add_epi16(nearer, square));
    }
    root_avx512(_mm512_castsi512_si256(best), out);
    root_avx512(_mm512_extracti64x4_epi64(best, 1), out + 16);
    return _mm512_cmpgt_epi16_mask(best, _mm512_set1_epi16(kFar - 1)) == 0;
}
#endif

// Turns a row's depths into distances.
class RowPass {
  public:
    explicit RowPass(std::ptrdiff_t cols)
        : cols_(cols),
          squares_(padded(cols), kFar),
          from_right_(padded(cols), kFar),
          from_left_(padded(cols), kFar) {}

    // `depth` may lie in `out`. Returns whether all distances are exact; those that are not are kReach or
    // more.
    template <typename T>
    bool finish(const std::uint8_t* depth, const std::uint8_t* below, float* out) {
        std::int16_t* squares = squares_.data() + kReach;
        const std::int16_t* from_right = squares;
        const std::int16_t* from_left = squares;
        square(depth, below, cols_, squares);
        if constexpr (!std::is_same_v<T, bool>) {  // the end of a run in a mask is a zero anyway
            open_ends(depth, squares, cols_, from_right_.data() + kReach, from_left_.data() + kReach);
            from_right = from_right_.data() + kReach;
            from_left = from_left_.data() + kReach;
        }
        auto search = search_plain;
#if NUCFAST_X86
        if (isa() == Isa::avx2) search = search_avx2;
        if (isa() == Isa::avx512) search = search_avx512;
#endif
        bool exact = true;
        std::ptrdiff_t c = 0;
        for (; c + kLanes <= cols_; c += kLanes) {
            exact &= search(squares + c, from_right + c, from_left + c, out + c);
        }
        if (c < cols_) {
            float rest[kLanes];
            search(squares + c, from_right + c, from_left + c, rest);
            std::copy(rest, rest + (cols_ - c), out + c);
            exact &= std::all_of(rest, rest + (cols_ - c), [](float d) { return d < kReach; });
        }
        return exact;
    }

  private:
    static std::size_t padded(std::ptrdiff_t cols) {
        return static_cast<std::size_t>(cols + 2 * kReach + kLanes);
    }

    std::ptrdiff_t cols_;
    std::vector<std::int16_t>
        squares_;  // kReach columns of kFar to the left, as many and kLanes to the right
    std::vector<std::int16_t> from_right_;
    std::vector<std::int16_t> from_left_;
};

// --- objects of any size --------------------------------------------------------------------------------

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
void depth_from(Plane<const T> image, std::ptrdiff_t from, std::ptrdiff_t direction, float limit,
                float* depth) {
    const T* row = image.row(from);
    for (std::ptrdiff_t c = 0; c < image.cols; ++c) depth[c] = value_at(row, c) == 0 ? 0.0F : kInfinity;
    float distance = 1.0F;
    for (auto r = from + direction; r >= 0 && r < image.rows && distance < limit;
         r += direction, distance += 1.0F) {
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

// Columns [begin, end) of one row, all of one non-zero value.
struct Run {
    std::ptrdiff_t begin = 0;
    std::ptrdiff_t end = 0;
};

struct Parabola {
    std::int64_t at = 0;      // column of its lowest point
    std::int64_t height = 0;  // squared vertical distance there
    std::int64_t from = 0;    // first column where it is the lowest of all
};

// The exact distances of single runs from their exact depths: the lower envelope of parabolas.
class Envelope {
  public:
    Envelope(std::ptrdiff_t cols) : cols_(cols) {}

    void operator()(Run run, const float* depth, float* out) {
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

  private:
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
    std::vector<Parabola> parabolas_;
};

// Calls `body(run)` for the runs of equal non-zero value of a row.
template <typename T, typename Body>
void for_each_run(const T* row, std::ptrdiff_t cols, Body&& body) {
    for (std::ptrdiff_t begin = 0; begin < cols;) {
        const auto value = value_at(row, begin);
        std::ptrdiff_t end = begin + 1;
        while (end < cols && value_at(row, end) == value) ++end;
        if (value != 0) body(Run{begin, end});
        begin = end;
    }
}

// Sweeps once more over rows [first, last), with depths that are not cut off, and gives their exact distances
// to the runs that hold one of kReach or more. `rows` are those with such runs.
template <typename T>
void finish_large(Plane<const T> image, std::ptrdiff_t first, std::ptrdiff_t last,
                  const std::vector<char>& open, Plane<float> out) {
    const std::ptrdiff_t cols = image.cols;
    std::vector<float> depth(static_cast<std::size_t>(cols));
    depth_from(image, first, -1, kInfinity, depth.data());
    for (auto r = first; r < last; ++r) {
        if (r > first) step(image.row(r), image.row(r - 1), cols, depth.data(), depth.data());
        if (!open[r - first]) continue;
        float* distance = out.row(r);
        for_each_run(image.row(r), cols, [&](Run run) {
            const auto large = [](float d) { return d >= kReach; };
            if (std::none_of(distance + run.begin, distance + run.end, large)) return;
            // Kept until the sweep up gets here; negative, which no distance is.
            for (auto c = run.begin; c < run.end; ++c) distance[c] = -depth[c];
        });
    }
    Envelope envelope(cols);
    std::vector<float> least(static_cast<std::size_t>(cols));
    depth_from(image, last - 1, +1, kInfinity, depth.data());
    for (auto r = last - 1; r >= first; --r) {
        if (r < last - 1) step(image.row(r), image.row(r + 1), cols, depth.data(), depth.data());
        if (!open[r - first]) continue;
        float* distance = out.row(r);
        for_each_run(image.row(r), cols, [&](Run run) {
            if (distance[run.begin] > 0) return;
            for (auto c = run.begin; c < run.end; ++c) least[c] = std::min(-distance[c], depth[c]);
            envelope(run, least.data(), distance);
        });
    }
}

// Depths of row `from`, cut off at kReach, with the borders of label maps.
template <typename T>
void first_depths(Plane<const T> image, std::ptrdiff_t from, std::ptrdiff_t direction, std::uint8_t* depth) {
    std::vector<float> exact(static_cast<std::size_t>(image.cols));
    depth_from(image, from, direction, kReach, exact.data());
    const T* row = image.row(from);
    for (std::ptrdiff_t c = 0; c < image.cols; ++c) {
        depth[c] = static_cast<std::uint8_t>(std::min(exact[c], static_cast<float>(kReach)));
        if constexpr (!std::is_same_v<T, bool>) {
            if (c > 0 && row[c] != row[c - 1]) depth[c] |= kBorder;
        }
    }
}

}  // namespace

template <typename T>
void distance_transform(Plane<const T> image, int threads, Plane<float> out) {
    if (image.size() == 0) return;
    const std::ptrdiff_t cols = image.cols;
    parallel_for(image.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        // The depths of the sweep down lie in the result's own rows, a byte per pixel.
        const auto depths = [&](std::ptrdiff_t r) { return reinterpret_cast<std::uint8_t*>(out.row(r)); };
        first_depths(image, first, -1, depths(first));
        for (auto r = first + 1; r < last; ++r) {
            if constexpr (std::is_same_v<T, bool>) {
                const auto* row = reinterpret_cast<const std::uint8_t*>(image.row(r));
                step_mask(row, cols, depths(r - 1), depths(r));
            } else {
                step_labels(image.row(r), image.row(r - 1), cols, depths(r - 1), depths(r));
            }
        }
        RowPass row_pass(cols);
        std::vector<std::uint8_t> below(static_cast<std::size_t>(cols));
        std::vector<std::uint8_t> depth(static_cast<std::size_t>(cols));
        std::vector<std::uint8_t> next(static_cast<std::size_t>(cols));
        std::vector<char> open(static_cast<std::size_t>(last - first));
        bool exact = true;
        first_depths(image, last - 1, +1, below.data());
        for (auto r = last - 1; r >= first; --r, std::swap(depth, next)) {
            std::copy(depths(r), depths(r) + cols, depth.data());  // the result will lie there
            if (r < last - 1) step_up(depth.data(), next.data(), cols, below.data());
            open[r - first] = !row_pass.template finish<T>(depth.data(), below.data(), out.row(r));
            exact &= !open[r - first];
        }
        if (!exact) finish_large(image, first, last, open, out);
    });
}

template void distance_transform(Plane<const bool>, int, Plane<float>);
template void distance_transform(Plane<const Label>, int, Plane<float>);

}  // namespace nucfast
