#include "nucfast/split.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "nucfast/components.hpp"

namespace nucfast {

namespace {

// In step 1 `nuclei` holds the index of the pixel that each pixel points to; resolved pixels hold
// kFirstBasin - basin instead.
constexpr Label kOutside = -1;
constexpr Label kFirstBasin = -2;

// The eight neighbours and the pixel itself (code 4), so that the earliest in raster order has the highest
// code. A candidate is 16 * height + code: its maximum is the highest neighbour, ties broken, and says which
// it is.
constexpr int kCodes = 9;
constexpr std::int16_t kMaskedOut = -256;

void climb(Plane<const std::uint8_t> height, Plane<const bool> mask, Plane<Label> pointers) {
    const std::ptrdiff_t cols = height.cols;
    std::array<Label, kCodes> offset{};
    for (int code = 0; code < kCodes; ++code) {
        offset[code] = static_cast<Label>((1 - code / 3) * cols + (1 - code % 3));
    }
    // Rows of 16 * height with one masked-out pixel at each end; above, at and below the current row.
    std::array<std::vector<std::int16_t>, 3> rows;
    for (auto& row : rows) row.assign(static_cast<std::size_t>(cols) + 2, kMaskedOut);
    const auto load = [&](std::ptrdiff_t r) {
        std::int16_t* row = rows[r % 3].data() + 1;
        if (r == height.rows) {
            std::fill(row, row + cols, kMaskedOut);
            return;
        }
        const std::uint8_t* heights = height.row(r);
        const auto* inside = reinterpret_cast<const std::uint8_t*>(mask.row(r));
        for (std::ptrdiff_t c = 0; c < cols; ++c) {
            row[c] = inside[c] != 0 ? static_cast<std::int16_t>(heights[c] << 4) : kMaskedOut;
        }
    };
    std::vector<std::int16_t> highest(static_cast<std::size_t>(cols));
    load(0);
    for (std::ptrdiff_t r = 0; r < height.rows; ++r) {
        load(r + 1);
        const std::int16_t* above = rows[(r + 2) % 3].data();
        const std::int16_t* here = rows[r % 3].data();
        const std::int16_t* below = rows[(r + 1) % 3].data();
        const auto candidate = [](std::int16_t value, int code) {
            return static_cast<std::int16_t>(value + code);
        };
        for (std::ptrdiff_t c = 0; c < cols; ++c) {
            std::int16_t best = candidate(above[c], 8);
            best = std::max(best, candidate(above[c + 1], 7));
            best = std::max(best, candidate(above[c + 2], 6));
            best = std::max(best, candidate(here[c], 5));
            best = std::max(best, candidate(here[c + 1], 4));
            best = std::max(best, candidate(here[c + 2], 3));
            best = std::max(best, candidate(below[c], 2));
            best = std::max(best, candidate(below[c + 1], 1));
            best = std::max(best, below[c + 2]);
            highest[c] = here[c + 1] < 0 ? kMaskedOut : best;
        }
        Label* out = pointers.row(r);
        const auto first = static_cast<Label>(r * cols);
        for (std::ptrdiff_t c = 0; c < cols; ++c) {
            out[c] = highest[c] < 0 ? kOutside : first + static_cast<Label>(c) + offset[highest[c] & 15];
        }
    }
}

// Replaces pointers by basins and returns the summit of each basin. Every pixel is walked over once and
// written once: a walk ends where an earlier one has been.
std::vector<Label> follow(Plane<Label> pointers) {
    std::vector<Label> summits;
    std::vector<Label> path;
    Label* const pointer = pointers.data;
    const auto size = static_cast<Label>(pointers.size());
    for (Label start = 0; start < size; ++start) {
        if (pointer[start] < 0) continue;
        Label here = start;
        while (pointer[here] >= 0 && pointer[here] != here) {
            path.push_back(here);
            here = pointer[here];
        }
        if (pointer[here] == here) {
            pointer[here] = kFirstBasin - static_cast<Label>(summits.size());
            summits.push_back(here);
        }
        for (const Label i : path) pointer[i] = pointer[here];
        path.clear();
    }
    return summits;
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

SaddleTable find_saddles(Plane<const std::uint8_t> height, Plane<const Label> basins) {
    SaddleTable table;
    const auto look = [&](Label basin, Label other, std::uint8_t h, std::uint8_t g) {
        if (basin == other || basin == kOutside || other == kOutside) return;
        table.add(kFirstBasin - other, kFirstBasin - basin, std::min(h, g));
    };
    for (std::ptrdiff_t r = 0; r < height.rows; ++r) {
        const Label* basin = basins.row(r);
        const std::uint8_t* h = height.row(r);
        for (std::ptrdiff_t c = 1; c < height.cols; ++c) look(basin[c], basin[c - 1], h[c], h[c - 1]);
        if (r == 0) continue;
        const Label* above = basins.row(r - 1);
        const std::uint8_t* g = height.row(r - 1);
        for (std::ptrdiff_t c = 0; c < height.cols; ++c) look(basin[c], above[c], h[c], g[c]);
    }
    return table;
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

}  // namespace

Label split_instances(Plane<const std::uint8_t> height, Plane<const bool> mask, int min_rise,
                      Plane<Label> nuclei) {
    if (nuclei.size() > std::numeric_limits<Label>::max()) {
        throw std::length_error("height: expected fewer than 2^31 pixels, got " +
                                std::to_string(nuclei.size()));
    }
    if (nuclei.size() == 0) return 0;
    climb(height, mask, nuclei);
    const std::vector<Label> summits = follow(nuclei);
    const SaddleTable table = find_saddles(height, {nuclei.data, nuclei.rows, nuclei.cols});
    const std::vector<Label> group = join(height, summits, table.saddles(), min_rise);
    for (std::ptrdiff_t i = 0; i < nuclei.size(); ++i) {
        Label& pixel = nuclei.data[i];
        pixel = pixel == kOutside ? 0 : group[kFirstBasin - pixel] + 1;
    }
    return keep_largest_parts(nuclei, group.size());
}

}  // namespace nucfast
