#include "nucfast/split.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "nucfast/components.hpp"
#include "nucfast/dispatch.hpp"

namespace nucfast {

namespace {

// Calls `body(row, run, its number)` for all runs in raster order.
template <typename Body>
void for_each_run(const Runs& runs, const Body& body) {
    for (std::size_t r = 0; r + 1 < runs.row_begin.size(); ++r) {
        for (auto i = runs.row_begin[r]; i < runs.row_begin[r + 1]; ++i) {
            body(static_cast<std::ptrdiff_t>(r), runs.runs[i], i);
        }
    }
}

// Ends a row of runs that are added one by one; called once before the first.
void end_row(Runs& runs) {
    runs.row_begin.push_back(static_cast<std::ptrdiff_t>(runs.runs.size()));
}

// The pixels of a mask, numbered in raster order. Of a slide's pixels few are in the mask: what is kept of
// these lies one after another, so that each pass reads memory from front to back.
struct Pixels {
    explicit Pixels(Runs mask) : runs(std::move(mask)) {
        first.reserve(runs.runs.size() + 1);
        Label count = 0;
        for (const Run run : runs.runs) {
            first.push_back(count);
            count += run.end - run.begin;
        }
        first.push_back(count);
    }

    std::ptrdiff_t rows() const { return static_cast<std::ptrdiff_t>(runs.row_begin.size()) - 1; }
    Label row_begin(std::ptrdiff_t r) const { return first[runs.row_begin[r]]; }

    std::vector<std::uint8_t> values_of(Plane<const std::uint8_t> image) const {
        std::vector<std::uint8_t> values(static_cast<std::size_t>(first.back()));
        for_each_run(runs, [&](std::ptrdiff_t r, Run run, std::ptrdiff_t i) {
            std::copy(image.row(r) + run.begin, image.row(r) + run.end, values.data() + first[i]);
        });
        return values;
    }

    Runs runs;
    std::vector<Label> first;  // the number of each run's first pixel, and how many pixels there are
};

using Heights = std::vector<std::uint8_t>;  // of all pixels
using Basins = std::vector<Label>;          // the same

// The eight neighbours and the pixel itself (code 4), so that the earliest in raster order has the highest
// code. A candidate is 16 * height + code: its maximum is the highest neighbour, ties broken, and says which
// it is.
constexpr int kCodes = 9;
constexpr int kItself = 4;
constexpr std::int16_t kMaskedOut = -256;

NUCFAST_INLINE void find_highest_body(const std::int16_t* above, const std::int16_t* here,
                                      const std::int16_t* below, std::ptrdiff_t count,
                                      std::int16_t* highest) {
    for (std::ptrdiff_t c = 0; c < count; ++c) {
        const std::int16_t* const rows[] = {above + c - 1, here + c - 1, below + c - 1};
        std::int16_t best = kMaskedOut;
        for (int k = 0; k < kCodes; ++k) {
            const auto candidate = static_cast<std::int16_t>(rows[k / 3][k % 3] + (kCodes - 1 - k));
            best = candidate > best ? candidate : best;
        }
        highest[c] = best;
    }
}
NUCFAST_VARIANTS(void, find_highest,
                 (const std::int16_t* above, const std::int16_t* here, const std::int16_t* below,
                  std::ptrdiff_t count, std::int16_t* highest),
                 (above, here, below, count, highest))

// Of each pixel -1 - its basin, if the way up leads up and left only in the image, else 1 + the pixel that it
// points to; and the summit of each basin.
Basins climb(const Heights& height, const Pixels& pixels, std::ptrdiff_t cols, std::vector<Label>& summits) {
    const Runs& mask = pixels.runs;
    Basins pointers(height.size());
    // Above, at and below the current row, with one masked-out pixel at each end: 16 * height, and what
    // makes pixel numbers of columns.
    std::array<std::vector<std::int16_t>, 3> heights;
    std::array<std::vector<Label>, 3> places;
    for (auto& row : heights) row.assign(static_cast<std::size_t>(cols) + 2, kMaskedOut);
    for (auto& row : places) row.resize(static_cast<std::size_t>(cols) + 2);
    const auto load = [&](std::ptrdiff_t r) {
        std::int16_t* const row = heights[r % 3].data() + 1;
        std::fill(row, row + cols, kMaskedOut);
        if (r == pixels.rows()) return;
        for (auto i = mask.row_begin[r]; i < mask.row_begin[r + 1]; ++i) {
            const Run run = mask.runs[i];
            const Label place = pixels.first[i] - run.begin;
            Label* const at = places[r % 3].data() + 1;
            std::fill(at + run.begin, at + run.end, place);
            for (auto c = run.begin; c < run.end; ++c) {
                row[c] = static_cast<std::int16_t>(height[place + c] << 4);
            }
        }
    };
    std::vector<std::int16_t> highest(static_cast<std::size_t>(cols));
    load(0);
    for (std::ptrdiff_t r = 0; r < pixels.rows(); ++r) {
        load(r + 1);
        // By code / 3: below, here, above.
        const Label* const place[] = {places[(r + 1) % 3].data() + 1, places[r % 3].data() + 1,
                                      places[(r + 2) % 3].data() + 1};
        for (auto i = mask.row_begin[r]; i < mask.row_begin[r + 1]; ++i) {
            const Run run = mask.runs[i];
            const std::ptrdiff_t at = 1 + run.begin;
            find_highest(heights[(r + 2) % 3].data() + at, heights[r % 3].data() + at,
                         heights[(r + 1) % 3].data() + at, run.end - run.begin, highest.data());
            for (auto c = run.begin; c < run.end; ++c) {
                const int code = highest[c - run.begin] & 15;
                const Label here = pixels.first[i] + c - run.begin;
                if (code == kItself) {
                    pointers[here] = -1 - static_cast<Label>(summits.size());
                    summits.push_back(here);
                    continue;
                }
                const Label col = c + 1 - code % 3;
                const Label next = place[code / 3][col] + col;
                // What comes later in raster order is not known yet; here there is still 0.
                const Label basin = pointers[code > kItself ? next : here];
                pointers[here] = basin < 0 ? basin : 1 + next;
            }
        }
    }
    return pointers;
}

// Replaces the pointers by basins. In reverse raster order most pixels point to where a basin is known
// already; from others the way is walked, once. Calls `done(row)` when all basins from that row on are known.
template <typename Done>
void follow(const Pixels& pixels, Basins& pointers, const Done& done) {
    std::vector<Label> path(64);
    Label* const pointer = pointers.data();
    for (std::ptrdiff_t r = pixels.rows(); r-- > 0;) {
        for (Label start = pixels.row_begin(r + 1); start-- > pixels.row_begin(r);) {
            Label next = pointer[start];
            if (next < 0) continue;
            const Label basin = pointer[next - 1];
            if (basin < 0) {
                pointer[start] = basin;
                continue;
            }
            Label here = start;
            std::size_t steps = 0;
            while (next >= 0) {
                if (steps == path.size()) path.resize(2 * steps);
                path[steps++] = here;
                here = next - 1;
                next = pointer[here];
            }
            for (std::size_t k = 0; k < steps; ++k) pointer[path[k]] = next;
        }
        done(r);
    }
}

// Two basins that share an edge; a < b.
struct Saddle {
    Label a = 0;
    Label b = 0;
    std::uint8_t height = 0;
};

// The saddles seen so far, by pair of basins: open addressing, at most half full.
class SaddleTable {
  public:
    SaddleTable() : slots_(1024, kEmpty) {}

    void add(Label a, Label b, std::uint8_t height) {
        if (a > b) std::swap(a, b);
        // Borders are walked along, so most often the pair is that of the call before.
        if (last_ < saddles_.size() && saddles_[last_].a == a && saddles_[last_].b == b) {
            saddles_[last_].height = std::max(saddles_[last_].height, height);
            return;
        }
        std::size_t slot = slot_of(a, b);
        if (slots_[slot] == kEmpty) {
            if (2 * saddles_.size() >= slots_.size()) {
                grow();
                slot = slot_of(a, b);
            }
            slots_[slot] = static_cast<std::uint32_t>(saddles_.size());
            saddles_.push_back({a, b, height});
        }
        last_ = slots_[slot];
        saddles_[last_].height = std::max(saddles_[last_].height, height);
    }

    const std::vector<Saddle>& saddles() const { return saddles_; }

  private:
    static constexpr std::uint32_t kEmpty = std::numeric_limits<std::uint32_t>::max();

    std::size_t slot_of(Label a, Label b) const {
        const std::uint64_t pair = static_cast<std::uint64_t>(a) << 32 | static_cast<std::uint32_t>(b);
        std::uint64_t hash = pair * 0x9E3779B97F4A7C15U;
        hash ^= hash >> 32;
        std::size_t slot = hash & (slots_.size() - 1);
        while (slots_[slot] != kEmpty && (saddles_[slots_[slot]].a != a || saddles_[slots_[slot]].b != b)) {
            slot = (slot + 1) & (slots_.size() - 1);
        }
        return slot;
    }

    void grow() {
        slots_.assign(2 * slots_.size(), kEmpty);
        for (std::size_t i = 0; i < saddles_.size(); ++i) {
            slots_[slot_of(saddles_[i].a, saddles_[i].b)] = static_cast<std::uint32_t>(i);
        }
    }

    std::vector<std::uint32_t> slots_;
    std::vector<Saddle> saddles_;
    std::size_t last_ = 0;
};

// Calls `body(i, k)` for all runs i of row r and k of the next row that share a column.
template <typename Body>
void for_each_touch(const Runs& runs, std::ptrdiff_t r, const Body& body) {
    auto below = runs.row_begin[r + 1];
    const auto end = runs.row_begin[r + 2];
    for (auto i = runs.row_begin[r]; i < runs.row_begin[r + 1]; ++i) {
        while (below < end && runs.runs[below].end <= runs.runs[i].begin) ++below;
        for (auto k = below; k < end && runs.runs[k].begin < runs.runs[i].end; ++k) body(i, k);
    }
}

// Adds the saddles within a row and between it and the next.
void find_saddles(const Heights& height, const Basins& basin, const Pixels& pixels, std::ptrdiff_t r,
                  SaddleTable& table) {
    const auto look = [&](Label here, Label there) {
        if (basin[here] != basin[there]) {
            table.add(-1 - basin[here], -1 - basin[there], std::min(height[here], height[there]));
        }
    };
    const Runs& runs = pixels.runs;
    for (auto i = runs.row_begin[r]; i < runs.row_begin[r + 1]; ++i) {
        for (Label here = pixels.first[i] + 1; here < pixels.first[i + 1]; ++here) look(here, here - 1);
    }
    if (r + 1 == pixels.rows()) return;
    for_each_touch(runs, r, [&](std::ptrdiff_t i, std::ptrdiff_t k) {
        const Label begin = std::max(runs.runs[i].begin, runs.runs[k].begin);
        const Label end = std::min(runs.runs[i].end, runs.runs[k].end);
        const Label here = pixels.first[i] - runs.runs[i].begin;
        const Label there = pixels.first[k] - runs.runs[k].begin;
        for (Label c = begin; c < end; ++c) look(here + c, there + c);
    });
}

// The basin that stands for each basin's group.
std::vector<Label> join(const Heights& height, const std::vector<Label>& summits,
                        const std::vector<Saddle>& saddles, int min_rise) {
    const auto level = [&](Label basin) { return height[summits[basin]]; };
    // In the order of step 1: by height, then the earlier in raster order.
    const auto higher = [&](Label a, Label b) {
        return level(a) != level(b) ? level(a) > level(b) : summits[a] < summits[b];
    };
    // Summits of groups only rise, so a saddle too low for its own two basins stays too low.
    std::vector<Saddle> candidates;
    for (Saddle s : saddles) {
        if (higher(s.b, s.a)) std::swap(s.a, s.b);
        if (level(s.b) - s.height < min_rise) candidates.push_back(s);
    }
    std::sort(candidates.begin(), candidates.end(), [&](const Saddle& s, const Saddle& t) {
        if (s.height != t.height) return s.height > t.height;
        return s.a != t.a ? higher(s.a, t.a) : s.b != t.b && higher(s.b, t.b);
    });
    std::vector<Label> group(summits.size());
    for (std::size_t i = 0; i < group.size(); ++i) group[i] = static_cast<Label>(i);
    const auto find = [&](Label i) {
        while (group[i] != i) i = group[i] = group[group[i]];
        return i;
    };
    for (const Saddle& s : candidates) {
        Label a = find(s.a);
        Label b = find(s.b);
        if (a == b) continue;
        if (higher(b, a)) std::swap(a, b);
        if (level(b) - s.height < min_rise) group[b] = a;
    }
    for (std::size_t i = 0; i < group.size(); ++i) group[i] = find(static_cast<Label>(i));
    return group;
}

// Of runs of which some touch, from row to row, and are the same: for each run the first, in raster order, of
// those that hang together.
template <typename Same>
std::vector<std::ptrdiff_t> connect(const Runs& runs, const Same& same) {
    std::vector<std::ptrdiff_t> root(runs.runs.size());
    std::iota(root.begin(), root.end(), std::ptrdiff_t{0});
    const auto find = [&](std::ptrdiff_t i) {
        while (root[i] != i) i = root[i] = root[root[i]];
        return i;
    };
    const auto rows = static_cast<std::ptrdiff_t>(runs.row_begin.size()) - 1;
    for (std::ptrdiff_t r = 0; r + 1 < rows; ++r) {
        for_each_touch(runs, r, [&](std::ptrdiff_t i, std::ptrdiff_t k) {
            if (!same(i, k)) return;
            const auto [first, other] = std::minmax({find(i), find(k)});
            root[other] = first;
        });
    }
    for (std::ptrdiff_t& i : root) i = root[i];  // a root comes before what it holds
    return root;
}

// Keeps of each group its largest 4-connected part, of equal ones the first in raster order, and numbers
// what is left. `nuclei` is 0 before.
Label keep_largest_parts(const Pixels& pixels, const Basins& basin, const std::vector<Label>& group,
                         Plane<Label> nuclei) {
    Runs parts;  // of one group each
    std::vector<Label> group_of;
    end_row(parts);
    for (std::ptrdiff_t r = 0; r < pixels.rows(); ++r) {
        for (auto i = pixels.runs.row_begin[r]; i < pixels.runs.row_begin[r + 1]; ++i) {
            const Run run = pixels.runs.runs[i];
            const Label* const at = basin.data() + (pixels.first[i] - run.begin);
            for (auto c = run.begin; c < run.end;) {
                const auto begin = c;
                const Label here = group[-1 - at[c]];
                do {
                    ++c;
                } while (c < run.end && (at[c] == at[c - 1] || group[-1 - at[c]] == here));
                parts.runs.push_back({begin, c});
                group_of.push_back(here);
            }
        }
        end_row(parts);
    }
    const auto root =
        connect(parts, [&](std::ptrdiff_t i, std::ptrdiff_t k) { return group_of[i] == group_of[k]; });
    const auto count = static_cast<std::ptrdiff_t>(root.size());
    std::vector<std::int64_t> area(root.size(), 0);
    for (std::ptrdiff_t i = 0; i < count; ++i) area[root[i]] += parts.runs[i].end - parts.runs[i].begin;
    std::vector<std::ptrdiff_t> largest(group.size(), -1);
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        std::ptrdiff_t& best = largest[group_of[i]];
        if (root[i] == i && (best < 0 || area[i] > area[best])) best = i;
    }
    Label last = 0;
    std::vector<Label> number(root.size(), 0);
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        if (largest[group_of[i]] == i) number[i] = ++last;
    }
    for_each_run(parts, [&](std::ptrdiff_t r, Run run, std::ptrdiff_t i) {
        std::fill(nuclei.row(r) + run.begin, nuclei.row(r) + run.end, number[root[i]]);
    });
    return last;
}

// Steps 1 and 2: fills `basins` with -1 - basin, and returns the group of each basin. Calls
// `visit(row, number of basins)` when the row's basins are known.
template <typename Visit>
std::vector<Label> groups_of(const Heights& height, const Pixels& pixels, std::ptrdiff_t cols, int min_rise,
                             Basins& basins, const Visit& visit) {
    std::vector<Label> summits;
    basins = climb(height, pixels, cols, summits);
    SaddleTable table;
    follow(pixels, basins, [&](std::ptrdiff_t r) {
        find_saddles(height, basins, pixels, r, table);
        visit(r, summits.size());
    });
    return join(height, summits, table.saddles(), min_rise);
}

Label split_runs(Plane<const std::uint8_t> height, Runs mask, int min_rise, Plane<Label> nuclei) {
    const Pixels pixels(std::move(mask));
    Basins basins;
    const std::vector<Label> group = groups_of(pixels.values_of(height), pixels, nuclei.cols, min_rise,
                                               basins, [](std::ptrdiff_t, std::size_t) {});
    std::fill(nuclei.data, nuclei.data + nuclei.size(), 0);
    return keep_largest_parts(pixels, basins, group, nuclei);
}

// The pixels of each group that have at least `share` of its highest probability.
Runs cut_to_peaks(Plane<const std::uint8_t> probability, Plane<const std::uint8_t> height, Runs mask,
                  int min_rise, double share) {
    const Pixels pixels(std::move(mask));
    const std::vector<std::uint8_t> p = pixels.values_of(probability);
    Basins basins;
    // Of basins, which are looked up once, and then of groups.
    std::vector<std::uint8_t> highest;
    const std::vector<Label> group =
        groups_of(pixels.values_of(height), pixels, height.cols, min_rise, basins,
                  [&](std::ptrdiff_t r, std::size_t count) {
                      highest.resize(count);
                      for (Label here = pixels.row_begin(r); here < pixels.row_begin(r + 1); ++here) {
                          std::uint8_t& peak = highest[-1 - basins[here]];
                          // Seldom: no store for the next load to wait for.
                          if (p[here] > peak) peak = p[here];
                      }
                  });
    for (std::size_t i = 0; i < group.size(); ++i) {
        highest[group[i]] = std::max(highest[group[i]], highest[i]);
    }
    std::vector<std::uint8_t> lowest(group.size());
    for (std::size_t i = 0; i < group.size(); ++i) {
        lowest[i] = static_cast<std::uint8_t>(std::ceil(share * highest[group[i]]));
    }
    Runs kept;
    end_row(kept);
    for (std::ptrdiff_t r = 0; r < pixels.rows(); ++r) {
        for (auto i = pixels.runs.row_begin[r]; i < pixels.runs.row_begin[r + 1]; ++i) {
            const Run run = pixels.runs.runs[i];
            const Label place = pixels.first[i] - run.begin;
            auto begin = run.begin;  // of what is kept
            for (auto c = run.begin; c < run.end; ++c) {
                if (p[place + c] >= lowest[-1 - basins[place + c]]) continue;
                if (begin < c) kept.runs.push_back({begin, c});
                begin = c + 1;
            }
            if (begin < run.end) kept.runs.push_back({begin, run.end});
        }
        end_row(kept);
    }
    return kept;
}

// Closes 4-connected holes of at most `max_px` pixels that do not reach the edge of the image.
Runs fill_holes(const Runs& mask, std::ptrdiff_t cols, double max_px) {
    const auto rows = static_cast<std::ptrdiff_t>(mask.row_begin.size()) - 1;
    Runs gaps;
    end_row(gaps);
    const auto add_gap = [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        if (begin == end) return;
        gaps.runs.push_back({static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)});
    };
    for (std::ptrdiff_t r = 0; r < rows; ++r) {
        std::ptrdiff_t begin = 0;
        for (auto i = mask.row_begin[r]; i < mask.row_begin[r + 1]; ++i) {
            add_gap(begin, mask.runs[i].begin);
            begin = mask.runs[i].end;
        }
        add_gap(begin, cols);
        end_row(gaps);
    }
    const auto root = connect(gaps, [](std::size_t, std::size_t) { return true; });
    std::vector<double> area(root.size(), 0);  // of those that reach the edge infinite
    for_each_run(gaps, [&](std::ptrdiff_t r, Run gap, std::ptrdiff_t i) {
        const bool open = r == 0 || r + 1 == rows || gap.begin == 0 || gap.end == cols;
        area[root[i]] += open ? std::numeric_limits<double>::infinity() : gap.end - gap.begin;
    });
    Runs filled;
    filled.runs.reserve(mask.runs.size());
    end_row(filled);
    for (std::ptrdiff_t r = 0; r < rows; ++r) {
        auto gap = gaps.row_begin[r];
        for (auto i = mask.row_begin[r]; i < mask.row_begin[r + 1]; ++i) {
            const Run run = mask.runs[i];
            const double hole = run.begin == 0 ? std::numeric_limits<double>::infinity() : area[root[gap++]];
            if (std::isfinite(hole) && hole <= max_px) {
                filled.runs.back().end = run.end;
            } else {
                filled.runs.push_back(run);
            }
        }
        end_row(filled);
    }
    return filled;
}

void expect_size(Plane<Label> nuclei, const char* name) {
    if (nuclei.size() >= std::numeric_limits<Label>::max()) {
        throw std::length_error(std::string(name) + ": expected fewer than 2^31 - 1 pixels, got " +
                                std::to_string(nuclei.size()));
    }
}

// `sums` holds one more than the columns at either end.
NUCFAST_INLINE void smooth_row_body(const std::uint8_t* above, const std::uint8_t* here,
                                    const std::uint8_t* below, std::ptrdiff_t cols, std::uint16_t* sums,
                                    std::uint8_t* to) {
    for (std::ptrdiff_t c = 0; c < cols; ++c) {
        sums[c + 1] = static_cast<std::uint16_t>(above[c] + 2 * here[c] + below[c]);
    }
    sums[0] = sums[1];
    sums[cols + 1] = sums[cols];
    for (std::ptrdiff_t c = 0; c < cols; ++c) {
        to[c] = static_cast<std::uint8_t>((sums[c] + 2 * sums[c + 1] + sums[c + 2] + 8) >> 4);
    }
}
NUCFAST_VARIANTS(void, smooth_row,
                 (const std::uint8_t* above, const std::uint8_t* here, const std::uint8_t* below,
                  std::ptrdiff_t cols, std::uint16_t* sums, std::uint8_t* to),
                 (above, here, below, cols, sums, to))

// Convolves with (1 2 1) x (1 2 1) / 16, rounded; the edge is repeated outwards.
void smooth(Plane<const std::uint8_t> height, Plane<std::uint8_t> out) {
    std::vector<std::uint16_t> sums(static_cast<std::size_t>(height.cols) + 2);  // of three rows
    for (std::ptrdiff_t r = 0; r < height.rows; ++r) {
        smooth_row(height.row(std::max<std::ptrdiff_t>(r - 1, 0)), height.row(r),
                   height.row(std::min(r + 1, height.rows - 1)), height.cols, sums.data(), out.row(r));
    }
}

// An image whose pixels are written before they are read.
struct Scratch {
    explicit Scratch(Plane<Label> like)
        : bytes(new std::uint8_t[static_cast<std::size_t>(like.size())]),
          plane{bytes.get(), like.rows, like.cols} {}

    Plane<const std::uint8_t> view() const { return {plane.data, plane.rows, plane.cols}; }

    std::unique_ptr<std::uint8_t[]> bytes;
    Plane<std::uint8_t> plane;
};

Runs runs_of(Plane<const std::uint8_t> probability, int threshold) {
    const Scratch inside({nullptr, probability.rows, probability.cols});
    for (std::ptrdiff_t i = 0; i < probability.size(); ++i) {
        inside.plane.data[i] = static_cast<std::uint8_t>(probability.data[i] >= threshold);
    }
    return mask_runs(inside.view());
}

}  // namespace

Label split_instances(Plane<const std::uint8_t> height, Plane<const bool> mask, int min_rise,
                      Plane<Label> nuclei) {
    expect_size(nuclei, "height");
    if (nuclei.size() == 0) return 0;
    // NumPy's bool may hold any byte.
    const Plane<const std::uint8_t> bytes{reinterpret_cast<const std::uint8_t*>(mask.data), mask.rows,
                                          mask.cols};
    return split_runs(height, mask_runs(bytes), min_rise, nuclei);
}

Label find_nuclei(Plane<const std::uint8_t> probability, Plane<const std::uint8_t> height,
                  const NucleiSettings& settings, Plane<Label> nuclei) {
    expect_size(nuclei, "probability");
    if (nuclei.size() == 0) return 0;
    const Scratch smoothed(nuclei);
    smooth(height, smoothed.plane);
    const Plane<const std::uint8_t> hills = smoothed.view();
    Runs runs = runs_of(probability, settings.threshold);
    if (settings.peak_share > 0) {
        runs = cut_to_peaks(probability, hills, std::move(runs), settings.min_rise, settings.peak_share);
    }
    return split_runs(hills, fill_holes(runs, nuclei.cols, settings.max_hole_px), settings.min_rise, nuclei);
}

}  // namespace nucfast
