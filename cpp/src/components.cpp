#include "nucfast/components.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "nucfast/parallel.hpp"

namespace nucfast {

namespace {

constexpr auto kMaxIndex = static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max());

// NumPy's bool may hold any byte; reading such a byte as C++ bool is undefined.
template <typename T>
using Raw = std::conditional_t<std::is_same_v<T, bool>, std::uint8_t, T>;

template <typename T>
const Raw<T>* raw(const T* values) {
    return reinterpret_cast<const Raw<T>*>(values);
}

// Index, in memory order, of the first non-zero byte of `word`, whose bytes are 0 or 1.
int first_byte(std::uint64_t word) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return __builtin_clzll(word) / 8;
#else
    return __builtin_ctzll(word) / 8;
#endif
}

std::uint64_t without_first_byte(std::uint64_t word) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return word & ~(std::uint64_t{1} << (63 - __builtin_clzll(word)));
#else
    return word & (word - 1);
#endif
}

// Consecutive rows labelled on their own; `parent` indexes `runs` and is never larger than its own index.
struct Strip {
    std::vector<Run> runs;
    std::vector<std::ptrdiff_t> row_end;
    std::vector<std::int32_t> parent;
};

std::int32_t find(std::vector<std::int32_t>& parent, std::int32_t i) {
    while (parent[i] != i) i = parent[i] = parent[parent[i]];
    return i;
}

void unite(std::vector<std::int32_t>& parent, std::int32_t a, std::int32_t b) {
    a = find(parent, a);
    b = find(parent, b);
    if (a != b) parent[std::max(a, b)] = std::min(a, b);
}

// Joins two neighbouring rows, given as ranges of `runs`. `reach` is 1 if corners connect, else 0.
template <typename T>
void join_rows(const std::vector<Run>& runs, std::ptrdiff_t a, std::ptrdiff_t a_end, std::ptrdiff_t b,
               std::ptrdiff_t b_end, const T* above, const T* below, std::int32_t reach,
               std::vector<std::int32_t>& parent) {
    const auto join_if_connected = [&](std::ptrdiff_t i, std::ptrdiff_t j) {
        if (runs[i].begin >= runs[j].end + reach || runs[j].begin >= runs[i].end + reach) return;
        if constexpr (!std::is_same_v<T, bool>) {
            if (above[runs[i].begin] != below[runs[j].begin]) return;
        }
        unite(parent, static_cast<std::int32_t>(i), static_cast<std::int32_t>(j));
    };
    while (a < a_end && b < b_end) {
        join_if_connected(a, b);
        const auto a_column = runs[a].end;
        const auto b_column = runs[b].end;
        if constexpr (!std::is_same_v<T, bool>) {
            // Runs of different values may abut, so where two runs end together each can still touch the
            // other row's next run by a corner.
            if (a_column == b_column) {
                if (a + 1 < a_end) join_if_connected(a + 1, b);
                if (b + 1 < b_end) join_if_connected(a, b + 1);
            }
        }
        if (a_column <= b_column) ++a;
        if (b_column <= a_column) ++b;
    }
}

}  // namespace

template <typename T>
void append_runs(const T* row, std::ptrdiff_t cols, std::vector<std::uint8_t>& scratch,
                 std::vector<Run>& runs) {
    if (cols <= 0) return;
    const auto* value = raw(row);
    constexpr std::ptrdiff_t kWord = sizeof(std::uint64_t);
    const std::ptrdiff_t words = cols / kWord + 1;
    scratch.resize(static_cast<std::size_t>(words * kWord));
    auto* changed = scratch.data();
    // changed[c]: pixel c differs from pixel c - 1; outside the row is background.
    changed[0] = value[0] != 0;
    for (std::ptrdiff_t c = 1; c < cols; ++c) {
        if constexpr (std::is_same_v<T, bool>) {
            changed[c] = (value[c] != 0) != (value[c - 1] != 0);
        } else {
            changed[c] = value[c] != value[c - 1];
        }
    }
    changed[cols] = value[cols - 1] != 0;
    std::memset(changed + cols + 1, 0, scratch.size() - static_cast<std::size_t>(cols) - 1);

    std::int32_t begin = -1;
    for (std::ptrdiff_t w = 0; w < words; ++w) {
        std::uint64_t word = 0;
        std::memcpy(&word, changed + w * kWord, sizeof word);
        for (; word != 0; word = without_first_byte(word)) {
            const auto c = static_cast<std::int32_t>(w * kWord + first_byte(word));
            if (begin >= 0) runs.push_back({begin, c});
            begin = c < cols && value[c] != 0 ? c : -1;
        }
    }
}

template <typename T>
RunComponents run_components(Plane<const T> image, int connectivity, int threads) {
    if (connectivity != 4 && connectivity != 8) {
        throw std::invalid_argument("connectivity: expected 4 or 8, got " + std::to_string(connectivity));
    }
    if (static_cast<std::size_t>(image.cols) >= kMaxIndex) {
        throw std::length_error("image: expected fewer than 2^31 columns, got " + std::to_string(image.cols));
    }
    const std::int32_t reach = connectivity == 8 ? 1 : 0;
    std::vector<Strip> strips(static_cast<std::size_t>(std::max(threads, 1)));
    parallel_for(image.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int piece) {
        Strip& strip = strips[static_cast<std::size_t>(piece)];
        std::vector<std::uint8_t> scratch;
        strip.row_end.reserve(static_cast<std::size_t>(last - first));
        std::ptrdiff_t above = 0;
        std::ptrdiff_t below = 0;
        for (auto r = first; r < last; ++r) {
            append_runs(image.row(r), image.cols, scratch, strip.runs);
            if (strip.runs.size() > kMaxIndex) throw std::length_error("image: more than 2^31 runs");
            const auto end = static_cast<std::ptrdiff_t>(strip.runs.size());
            for (auto i = below; i < end; ++i) strip.parent.push_back(static_cast<std::int32_t>(i));
            if (r > first) {
                join_rows(strip.runs, above, below, below, end, image.row(r - 1), image.row(r), reach,
                          strip.parent);
            }
            strip.row_end.push_back(end);
            above = below;
            below = end;
        }
    });

    RunComponents result;
    result.row_begin.reserve(static_cast<std::size_t>(image.rows) + 1);
    result.row_begin.push_back(0);
    std::vector<std::int32_t> parent;
    for (Strip& strip : strips) {
        const auto base = static_cast<std::ptrdiff_t>(result.runs.size());
        const auto row = static_cast<std::ptrdiff_t>(result.row_begin.size()) - 1;
        if (result.runs.size() + strip.runs.size() > kMaxIndex) {
            throw std::length_error("image: more than 2^31 runs");
        }
        for (const auto end : strip.row_end) result.row_begin.push_back(base + end);
        if (base == 0) {
            result.runs = std::move(strip.runs);
            parent = std::move(strip.parent);
        } else {
            result.runs.insert(result.runs.end(), strip.runs.begin(), strip.runs.end());
            for (const auto p : strip.parent) parent.push_back(static_cast<std::int32_t>(base + p));
        }
        if (row > 0 && !strip.row_end.empty()) {
            join_rows(result.runs, result.row_begin[row - 1], result.row_begin[row], result.row_begin[row],
                      result.row_begin[row + 1], image.row(row - 1), image.row(row), reach, parent);
        }
    }

    // A parent comes before its child, so one pass in order both numbers the roots and flattens the trees.
    for (std::size_t i = 0; i < parent.size(); ++i) {
        parent[i] = parent[i] == static_cast<std::int32_t>(i) ? ++result.count : parent[parent[i]];
    }
    result.labels = std::move(parent);
    return result;
}

template <typename T>
Label label_components(Plane<const T> image, int connectivity, int threads, Plane<Label> out) {
    const RunComponents components = run_components(image, connectivity, threads);
    parallel_for(out.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        for (auto r = first; r < last; ++r) {
            Label* row = out.row(r);
            std::ptrdiff_t painted = 0;
            for (auto i = components.row_begin[r]; i < components.row_begin[r + 1]; ++i) {
                const Run run = components.runs[i];
                std::fill(row + painted, row + run.begin, 0);
                std::fill(row + run.begin, row + run.end, components.labels[i]);
                painted = run.end;
            }
            std::fill(row + painted, row + out.cols, 0);
        }
    });
    return components.count;
}

#define NUCFAST_INSTANTIATE(T)                                                                          \
    template void append_runs(const T*, std::ptrdiff_t, std::vector<std::uint8_t>&, std::vector<Run>&); \
    template RunComponents run_components(Plane<const T>, int, int);                                    \
    template Label label_components(Plane<const T>, int, int, Plane<Label>);

NUCFAST_INSTANTIATE(bool)
NUCFAST_INSTANTIATE(std::uint8_t)
NUCFAST_INSTANTIATE(std::uint16_t)
NUCFAST_INSTANTIATE(Label)

#undef NUCFAST_INSTANTIATE

}  // namespace nucfast
