#include "nucfast/split.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "nucfast/bits.hpp"
#include "nucfast/components.hpp"
#include "nucfast/dispatch.hpp"

namespace nucfast {

namespace {

// In step 1 `nuclei` holds 1 + the index of the pixel that each pixel points to; resolved pixels hold
// -1 - basin instead.
constexpr Label kOutside = 0;

// Calls `body(row, run)` for all runs in raster order.
template <typename Body>
void for_each_run(const Runs& mask, const Body& body) {
    for (std::size_t r = 0; r + 1 < mask.row_begin.size(); ++r) {
        for (auto i = mask.row_begin[r]; i < mask.row_begin[r + 1]; ++i) {
            body(static_cast<std::ptrdiff_t>(r), mask.runs[i]);
        }
    }
}

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

// Fills `pointers` with -1 - basin for pixels from which the way up leads up and left only in the image, with
// pointers for others, and returns the summit of each basin.
std::vector<Label> climb(Plane<const std::uint8_t> height, const Runs& mask, Plane<Label> pointers) {
    std::vector<Label> summits;
    const std::ptrdiff_t cols = height.cols;
    std::array<Label, kCodes> offset{};
    for (int code = 0; code < kCodes; ++code) {
        offset[code] = static_cast<Label>(1 + (1 - code / 3) * cols + (1 - code % 3));
    }
    // Rows of 16 * height with one masked-out pixel at each end; above, at and below the current row.
    std::array<std::vector<std::int16_t>, 3> rows;
    for (auto& row : rows) row.assign(static_cast<std::size_t>(cols) + 2, kMaskedOut);
    const auto load = [&](std::ptrdiff_t r) {
        std::int16_t* const row = rows[r % 3].data() + 1;
        std::fill(row, row + cols, kMaskedOut);
        if (r == height.rows) return;
        const std::uint8_t* const heights = height.row(r);
        for (auto i = mask.row_begin[r]; i < mask.row_begin[r + 1]; ++i) {
            for (auto c = mask.runs[i].begin; c < mask.runs[i].end; ++c) {
                row[c] = static_cast<std::int16_t>(heights[c] << 4);
            }
        }
    };
    std::vector<std::int16_t> highest(static_cast<std::size_t>(cols));
    load(0);
    for (std::ptrdiff_t r = 0; r < height.rows; ++r) {
        load(r + 1);
        Label* const out = pointers.row(r);
        std::fill(out, out + cols, kOutside);
        const auto first = static_cast<Label>(r * cols);
        for (auto i = mask.row_begin[r]; i < mask.row_begin[r + 1]; ++i) {
            const Run run = mask.runs[i];
            const std::ptrdiff_t at = 1 + run.begin;
            find_highest(rows[(r + 2) % 3].data() + at, rows[r % 3].data() + at,
                         rows[(r + 1) % 3].data() + at, run.end - run.begin, highest.data());
            for (auto c = run.begin; c < run.end; ++c) {
                const int code = highest[c - run.begin] & 15;
                const Label next = first + c + offset[code];
                if (code == kItself) {
                    out[c] = -1 - static_cast<Label>(summits.size());
                    summits.push_back(next - 1);
                    continue;
                }
                // What comes later in raster order is not known yet; here there is still kOutside.
                const Label basin = pointers.data[code > kItself ? next - 1 : first + c];
                out[c] = basin < 0 ? basin : next;
            }
        }
    }
    return summits;
}

// Replaces the pointers by basins. In reverse raster order most pixels point to where a basin is known
// already; from others the way is walked, once. Calls `done(row)` when all basins from that row on are known.
template <typename Done>
void follow(const Runs& mask, Plane<Label> pointers, const Done& done) {
    std::vector<Label> path(64);
    Label* const pointer = pointers.data;
    for (std::ptrdiff_t r = pointers.rows; r-- > 0;) {
        const auto first = static_cast<Label>(r * pointers.cols);
        for (auto i = mask.row_begin[r + 1]; i-- > mask.row_begin[r];) {
            for (Label start = first + mask.runs[i].end; start-- > first + mask.runs[i].begin;) {
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

// Adds the saddles within a row and between it and the next.
void find_saddles(Plane<const std::uint8_t> height, Plane<const Label> basins, std::ptrdiff_t r,
                  SaddleTable& table) {
    const auto look = [&](Label basin, Label other, std::uint8_t h, std::uint8_t g) {
        if (basin != kOutside && other != kOutside) table.add(-1 - other, -1 - basin, std::min(h, g));
    };
    const Label* const basin = basins.row(r);
    const std::uint8_t* const h = height.row(r);
    for (std::ptrdiff_t first = 0; first < basins.cols; first += kBits) {
        const std::ptrdiff_t count = std::min(kBits, basins.cols - first);
        const std::ptrdiff_t second = std::max<std::ptrdiff_t>(first, 1);
        Word differ = differing_bits(basin + second, basin + second - 1, first + count - second);
        for (; differ != 0; differ &= differ - 1) {
            const std::ptrdiff_t c = second + count_zeros(differ);
            look(basin[c], basin[c - 1], h[c], h[c - 1]);
        }
        if (r + 1 == basins.rows) continue;
        const Label* const below = basins.row(r + 1);
        const std::uint8_t* const g = height.row(r + 1);
        differ = differing_bits(basin + first, below + first, count);
        for (; differ != 0; differ &= differ - 1) {
            const std::ptrdiff_t c = first + count_zeros(differ);
            look(basin[c], below[c], h[c], g[c]);
        }
    }
}

// The basin that stands for each basin's group.
std::vector<Label> join(Plane<const std::uint8_t> height, const std::vector<Label>& summits,
                        const std::vector<Saddle>& saddles, int min_rise) {
    const auto level = [&](Label basin) { return height.data[summits[basin]]; };
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

// Keeps of each value its largest 4-connected part, of equal ones the first in raster order, and numbers
// what is left.
Label keep_largest_parts(Plane<Label> labels, std::size_t values) {
    const RunComponents parts =
        run_components(Plane<const Label>{labels.data, labels.rows, labels.cols}, 4, 1);
    std::vector<std::int64_t> area(static_cast<std::size_t>(parts.count) + 1, 0);
    std::vector<Label> value(area.size(), 0);
    for (std::ptrdiff_t r = 0; r < labels.rows; ++r) {
        for (auto i = parts.row_begin[r]; i < parts.row_begin[r + 1]; ++i) {
            area[parts.labels[i]] += parts.runs[i].end - parts.runs[i].begin;
            value[parts.labels[i]] = labels(r, parts.runs[i].begin);
        }
    }
    std::vector<Label> largest(values + 1, 0);
    for (Label part = 1; part <= parts.count; ++part) {
        Label& best = largest[value[part]];
        if (area[part] > area[best]) best = part;
    }
    Label count = 0;
    std::vector<Label> number(area.size(), 0);
    for (Label part = 1; part <= parts.count; ++part) {
        if (largest[value[part]] == part) number[part] = ++count;
    }
    for (std::ptrdiff_t r = 0; r < labels.rows; ++r) {
        Label* row = labels.row(r);
        for (auto i = parts.row_begin[r]; i < parts.row_begin[r + 1]; ++i) {
            std::fill(row + parts.runs[i].begin, row + parts.runs[i].end, number[parts.labels[i]]);
        }
    }
    return count;
}

// Steps 1 and 2: fills `basins` with -1 - basin where there are runs, and returns the group of each basin.
// Calls `visit(row, number of basins)` when the row's basins are known.
template <typename Visit>
std::vector<Label> groups_of(Plane<const std::uint8_t> height, const Runs& runs, int min_rise,
                             Plane<Label> basins, const Visit& visit) {
    const std::vector<Label> summits = climb(height, runs, basins);
    SaddleTable table;
    follow(runs, basins, [&](std::ptrdiff_t r) {
        find_saddles(height, {basins.data, basins.rows, basins.cols}, r, table);
        visit(r, summits.size());
    });
    return join(height, summits, table.saddles(), min_rise);
}

Label split_runs(Plane<const std::uint8_t> height, const Runs& runs, int min_rise, Plane<Label> nuclei) {
    const std::vector<Label> group =
        groups_of(height, runs, min_rise, nuclei, [](std::ptrdiff_t, std::size_t) {});
    for_each_run(runs, [&](std::ptrdiff_t r, Run run) {
        Label* const row = nuclei.row(r);
        for (auto c = run.begin; c < run.end; ++c) row[c] = group[-1 - row[c]] + 1;
    });
    return keep_largest_parts(nuclei, group.size());
}

// Keeps the pixels of each group that have at least `share` of its highest probability. Fills `basins`.
void cut_to_peaks(Plane<const std::uint8_t> probability, Plane<const std::uint8_t> height, int min_rise,
                  double share, Plane<std::uint8_t> mask, Plane<Label> basins) {
    const Runs runs = mask_runs({mask.data, mask.rows, mask.cols});
    // Of basins, which are looked up once, and then of groups.
    std::vector<std::uint8_t> highest;
    const std::vector<Label> group =
        groups_of(height, runs, min_rise, basins, [&](std::ptrdiff_t r, std::size_t count) {
            highest.resize(count);
            const Label* const basin = basins.row(r);
            const std::uint8_t* const p = probability.row(r);
            for (auto i = runs.row_begin[r]; i < runs.row_begin[r + 1]; ++i) {
                for (auto c = runs.runs[i].begin; c < runs.runs[i].end; ++c) {
                    std::uint8_t& peak = highest[-1 - basin[c]];
                    if (p[c] > peak) peak = p[c];  // seldom: no store for the next load to wait for
                }
            }
        });
    for (std::size_t i = 0; i < group.size(); ++i) {
        highest[group[i]] = std::max(highest[group[i]], highest[i]);
    }
    std::vector<std::uint8_t> lowest(group.size());
    for (std::size_t i = 0; i < group.size(); ++i) {
        lowest[i] = static_cast<std::uint8_t>(std::ceil(share * highest[group[i]]));
    }
    for_each_run(runs, [&](std::ptrdiff_t r, Run run) {
        const Label* const basin = basins.row(r);
        const std::uint8_t* const p = probability.row(r);
        std::uint8_t* const inside = mask.row(r);
        for (auto c = run.begin; c < run.end; ++c) {
            inside[c] = static_cast<std::uint8_t>(p[c] >= lowest[-1 - basin[c]]);
        }
    });
}

// Closes 4-connected holes of at most `max_px` pixels that do not reach the edge of the image.
void fill_holes(double max_px, Plane<std::uint8_t> mask) {
    std::vector<std::uint8_t> outside(static_cast<std::size_t>(mask.size()));
    for (std::ptrdiff_t i = 0; i < mask.size(); ++i) outside[i] = mask.data[i] ^ 1U;
    const Plane<const bool> background{reinterpret_cast<const bool*>(outside.data()), mask.rows, mask.cols};
    const RunComponents parts = run_components(background, 4, 1);
    constexpr std::int64_t open = std::numeric_limits<std::int64_t>::max() / 2;  // no run makes it overflow
    std::vector<std::int64_t> area(static_cast<std::size_t>(parts.count) + 1, 0);
    const auto visit = [&](const auto& body) {
        for (std::ptrdiff_t r = 0; r < mask.rows; ++r) {
            for (auto i = parts.row_begin[r]; i < parts.row_begin[r + 1]; ++i) {
                body(r, parts.runs[i], area[parts.labels[i]]);
            }
        }
    };
    visit([&](std::ptrdiff_t r, Run run, std::int64_t& pixels) {
        pixels += run.end - run.begin;
        if (r == 0 || r + 1 == mask.rows || run.begin == 0 || run.end == mask.cols) pixels = open;
    });
    visit([&](std::ptrdiff_t r, Run run, std::int64_t pixels) {
        if (static_cast<double>(pixels) > max_px) return;
        std::fill(mask.row(r) + run.begin, mask.row(r) + run.end, std::uint8_t{1});
    });
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
    const Scratch inside(nuclei);
    const Plane<std::uint8_t> mask = inside.plane;
    for (std::ptrdiff_t i = 0; i < mask.size(); ++i) {
        mask.data[i] = static_cast<std::uint8_t>(probability.data[i] >= settings.threshold);
    }
    const Scratch smoothed(nuclei);
    smooth(height, smoothed.plane);
    const Plane<const std::uint8_t> hills = smoothed.view();
    if (settings.peak_share > 0) {
        cut_to_peaks(probability, hills, settings.min_rise, settings.peak_share, mask, nuclei);
    }
    fill_holes(settings.max_hole_px, mask);
    return split_runs(hills, mask_runs(inside.view()), settings.min_rise, nuclei);
}

}  // namespace nucfast
