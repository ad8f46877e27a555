#include "nucfast/split.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "nucfast/bits.hpp"
#include "nucfast/components.hpp"
#include "nucfast/dispatch.hpp"

namespace nucfast {

namespace {

// Ends a row of runs that are added one by one; called once before the first.
void end_row(Runs& runs) {
    runs.row_begin.push_back(static_cast<std::ptrdiff_t>(runs.runs.size()));
}

// A value for each pixel of the mask, with room for a word at both ends.
template <typename T>
class PerPixel {
  public:
    PerPixel() = default;
    explicit PerPixel(Label count) : values_(static_cast<std::size_t>(count) + 2 * kBits) {}
    T* data() { return values_.data() + kBits; }
    const T* data() const { return values_.data() + kBits; }
    T operator[](std::ptrdiff_t i) const { return data()[i]; }

  private:
    std::vector<T> values_;
};

// A bit for each pixel of the mask.
class PixelBits {
  public:
    PixelBits() = default;
    explicit PixelBits(Label count) : words_(static_cast<std::size_t>(count) / kBits + 2) {}
    static PixelBits all(Label count) {
        PixelBits bits(count);
        std::fill(bits.words_.begin(), bits.words_.end(), ~Word{0});
        return bits;
    }
    std::ptrdiff_t words() const { return static_cast<std::ptrdiff_t>(words_.size()) - 1; }
    Word& word(std::ptrdiff_t w) { return words_[w]; }
    void set(Label i) { words_[i / kBits] |= Word{1} << i % kBits; }

    // Those of the first `count` pixels from pixel i on, at most 64.
    Word from(Label i, std::ptrdiff_t count) const {
        const auto shift = static_cast<int>(i % kBits);
        const Word* const at = words_.data() + i / kBits;
        const Word found = at[0] >> shift | (at[1] << 1) << (kBits - 1 - shift);
        return count < kBits ? found & ((Word{1} << count) - 1) : found;
    }

  private:
    std::vector<Word> words_;  // one more than is used
};

void copy_row(const std::uint8_t* image, std::ptrdiff_t cols, const Run* runs, std::ptrdiff_t count,
              std::uint8_t* to) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        for (std::ptrdiff_t c = runs[i].begin; c < runs[i].end; c += kBlock) {
            if (c + kBlock <= cols) {
                std::memcpy(to, image + c, kBlock);
            } else {
                std::copy(image + c, image + runs[i].end, to);
            }
            to += std::min<std::ptrdiff_t>(runs[i].end - c, kBlock);
        }
    }
}

// Convolves with (1 2 1) x (1 2 1) / 16, rounded; the edge is repeated outwards.
NUCFAST_INLINE void smooth_row_body(const std::uint8_t* above, const std::uint8_t* here,
                                    const std::uint8_t* below, std::ptrdiff_t cols, const Run* runs,
                                    std::ptrdiff_t count, std::uint8_t* to) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        for (std::ptrdiff_t c = runs[i].begin; c < runs[i].end; c += kBlock) {
            const std::ptrdiff_t left = std::min<std::ptrdiff_t>(runs[i].end - c, kBlock);
            if (c > 0 && c + kBlock < cols) {
                for (std::ptrdiff_t k = 0; k < kBlock; ++k) {
                    const auto sum = [&](std::ptrdiff_t at) {
                        return static_cast<std::uint16_t>(above[at] + 2 * here[at] + below[at]);
                    };
                    to[k] = static_cast<std::uint8_t>(
                        static_cast<std::uint16_t>(sum(c + k - 1) + 2 * sum(c + k) + sum(c + k + 1) + 8) >>
                        4);
                }
            } else {
                for (std::ptrdiff_t k = 0; k < left; ++k) {
                    const auto sum = [&](std::ptrdiff_t at) {
                        at = std::clamp<std::ptrdiff_t>(at, 0, cols - 1);
                        return above[at] + 2 * here[at] + below[at];
                    };
                    to[k] = static_cast<std::uint8_t>(
                        (sum(c + k - 1) + 2 * sum(c + k) + sum(c + k + 1) + 8) >> 4);
                }
            }
            to += left;
        }
    }
}
NUCFAST_VARIANTS(void, smooth_row,
                 (const std::uint8_t* above, const std::uint8_t* here, const std::uint8_t* below,
                  std::ptrdiff_t cols, const Run* runs, std::ptrdiff_t count, std::uint8_t* to),
                 (above, here, below, cols, runs, count, to))

using Bytes = PerPixel<std::uint8_t>;
using Basins = PerPixel<Label>;

// The pixels of a mask, numbered in raster order. Of a slide's pixels few are in the mask: what is kept of
// these lies one after another, so that each pass reads memory from front to back.
struct Pixels {
    explicit Pixels(Runs mask) : runs(std::move(mask)) {
        first.reserve(runs.runs.size() + 1);
        Label total = 0;
        for (const Run run : runs.runs) {
            first.push_back(total);
            total += run.end - run.begin;
        }
        first.push_back(total);
    }

    std::ptrdiff_t rows() const { return static_cast<std::ptrdiff_t>(runs.row_begin.size()) - 1; }
    Label count() const { return first.back(); }

    Bytes values_of(Plane<const std::uint8_t> image) const {
        Bytes values(count());
        for_each_row([&](std::ptrdiff_t r, const Run* row, std::ptrdiff_t length, Label number) {
            copy_row(image.row(r), image.cols, row, length, values.data() + number);
        });
        return values;
    }

    Bytes smoothed_values_of(Plane<const std::uint8_t> image) const {
        Bytes values(count());
        for_each_row([&](std::ptrdiff_t r, const Run* row, std::ptrdiff_t length, Label number) {
            smooth_row(image.row(std::max<std::ptrdiff_t>(r - 1, 0)), image.row(r),
                       image.row(std::min(r + 1, image.rows - 1)), image.cols, row, length,
                       values.data() + number);
        });
        return values;
    }

    // Calls `body(row, its first run, its number of runs, the number of its first pixel)`.
    template <typename Body>
    void for_each_row(const Body& body) const {
        for (std::ptrdiff_t r = 0; r < rows(); ++r) {
            const auto begin = runs.row_begin[r];
            const auto length = runs.row_begin[r + 1] - begin;
            if (length > 0) body(r, runs.runs.data() + begin, length, first[begin]);
        }
    }

    Runs runs;
    std::vector<Label> first;  // the number of each run's first pixel, and how many pixels there are
};

// The eight neighbours and the pixel itself (code 4), so that the earliest in raster order has the highest
// code. A candidate is 16 * height + code: its maximum is the highest neighbour, ties broken, and says which
// it is.
constexpr int kCodes = 9;
constexpr std::int16_t kMaskedOut = -32640;  // two equal bytes

// A row of the image with columns to spare: 16 * height of the pixels in the mask, and what makes pixel
// numbers of columns.
class ClimbRow {
  public:
    explicit ClimbRow(std::ptrdiff_t cols)
        : height_(static_cast<std::size_t>(cols + 2 * kBlock), kMaskedOut),
          place_(static_cast<std::size_t>(cols + 2 * kBlock)) {}
    std::int16_t* height() { return height_.data() + 1; }
    Label* place() { return place_.data() + 1; }
    void clear() { std::memset(height_.data(), kMaskedOut & 255, sizeof kMaskedOut * height_.size()); }

  private:
    std::vector<std::int16_t> height_;
    std::vector<Label> place_;
};

NUCFAST_INLINE void load_row_body(const std::uint8_t* heights, Label number, const Run* runs,
                                  std::ptrdiff_t count, std::int16_t* height, Label* place) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const Run run = runs[i];
        for (std::ptrdiff_t c = run.begin; c < run.end; c += kBlock) {
            const std::uint8_t* const from = heights + (c - run.begin);
            for (int k = 0; k < kBlock; ++k) height[c + k] = static_cast<std::int16_t>(from[k] << 4);
            for (int k = 0; k < kBlock; ++k) place[c + k] = number - run.begin;
        }
        for (int k = 0; k < kBlock; ++k) height[run.end + k] = kMaskedOut;
        heights += run.end - run.begin;
        number += run.end - run.begin;
    }
}
NUCFAST_VARIANTS(void, load_row,
                 (const std::uint8_t* heights, Label number, const Run* runs, std::ptrdiff_t count,
                  std::int16_t* height, Label* place),
                 (heights, number, runs, count, height, place))

// Of each pixel of a row the code of the highest around it.
NUCFAST_INLINE void find_highest_body(const std::int16_t* above, const std::int16_t* here,
                                      const std::int16_t* below, const Run* runs, std::ptrdiff_t count,
                                      std::int16_t* codes) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        for (std::ptrdiff_t c = runs[i].begin; c < runs[i].end; c += kBlock) {
            const std::int16_t* const rows[] = {below + c, here + c, above + c};
            for (int k = 0; k < kBlock; ++k) {
                std::int16_t best = kMaskedOut;
                for (int code = 0; code < kCodes; ++code) {
                    const auto candidate = static_cast<std::int16_t>(rows[code / 3][k + 1 - code % 3] + code);
                    best = candidate > best ? candidate : best;
                }
                codes[k] = best & 15;
            }
            codes += std::min<std::ptrdiff_t>(runs[i].end - c, kBlock);
        }
    }
}
NUCFAST_VARIANTS(void, find_highest,
                 (const std::int16_t* above, const std::int16_t* here, const std::int16_t* below,
                  const Run* runs, std::ptrdiff_t count, std::int16_t* codes),
                 (above, here, below, runs, count, codes))

// Without a branch, for signs that are hard to predict.
NUCFAST_INLINE Label choose(Label sign, Label if_negative, Label otherwise) {
    const Label negative = -static_cast<Label>(sign < 0);
    return (if_negative & negative) | (otherwise & ~negative);
}

// Of each pixel -1 - its basin; and the summit of each basin.
Basins climb(const Bytes& heights, const Pixels& pixels, std::ptrdiff_t cols, std::vector<Label>& summits) {
    const Runs& mask = pixels.runs;
    Basins pointers(pixels.count());  // -1 - the basin, if it is known, else 1 + a higher pixel
    Label* const pointer = pointers.data();
    std::vector<std::int16_t> codes(static_cast<std::size_t>(cols + kBlock));
    std::array<ClimbRow, 3> rows = {ClimbRow(cols), ClimbRow(cols), ClimbRow(cols)};
    const auto load = [&](std::ptrdiff_t r) {
        ClimbRow& row = rows[r % 3];
        row.clear();
        if (r == pixels.rows()) return;
        const auto begin = mask.row_begin[r];
        load_row(heights.data() + pixels.first[begin], pixels.first[begin], mask.runs.data() + begin,
                 mask.row_begin[r + 1] - begin, row.height(), row.place());
    };
    load(0);
    for (std::ptrdiff_t r = 0; r < pixels.rows(); ++r) {
        load(r + 1);
        ClimbRow& above = rows[(r + 2) % 3];
        ClimbRow& here = rows[r % 3];
        ClimbRow& below = rows[(r + 1) % 3];
        const auto begin = mask.row_begin[r];
        const auto end = mask.row_begin[r + 1];
        find_highest(above.height(), here.height(), below.height(), mask.runs.data() + begin, end - begin,
                     codes.data());
        std::array<const Label*, kCodes> place;
        std::array<Label, kCodes> step;
        for (int code = 0; code < kCodes; ++code) {
            step[code] = 1 - code % 3;
            place[code] = (code < 3 ? below : code < 6 ? here : above).place() + step[code];
        }
        const std::int16_t* code = codes.data();
        for (auto i = begin; i < end; ++i) {
            Label at = pixels.first[i];
            for (auto c = mask.runs[i].begin; c < mask.runs[i].end; ++c, ++at, ++code) {
                const Label next = place[*code][c] + c + step[*code];
                if (next == at) {
                    pointer[at] = -1 - static_cast<Label>(summits.size());
                    summits.push_back(at);
                    continue;
                }
                // Of what comes later in raster order nothing is known yet: there is still 0.
                const Label basin = pointer[choose(next - at, next, at)];
                pointer[at] = choose(basin, basin, next + 1);
            }
        }
    }
    // In reverse raster order most pixels point to where a basin is known already; from others the way is
    // walked, once.
    std::vector<Label> path(64);
    for (Label start = pixels.count(); start-- > 0;) {
        const Label first = pointer[start];
        Label basin = pointer[choose(first, start, first - 1)];
        if (basin < 0) {
            pointer[start] = basin;
            continue;
        }
        std::size_t steps = 0;
        Label here = start;
        for (Label next = first; next >= 0; next = pointer[here]) {
            if (steps == path.size()) path.resize(2 * steps);
            path[steps++] = here;
            here = next - 1;
        }
        basin = pointer[here];
        for (std::size_t k = 0; k < steps; ++k) pointer[path[k]] = basin;
    }
    return pointers;
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

// All saddles; and of each pixel whether its basin is another than that of the pixel before it in its run.
std::vector<Saddle> find_saddles(const Bytes& height, const Basins& basins, const Pixels& pixels,
                                 PixelBits& borders) {
    SaddleTable table;
    const Label* const basin = basins.data();
    const auto add = [&](Label here, Label there) {
        table.add(-1 - basin[here], -1 - basin[there], std::min(height[here], height[there]));
    };
    PixelBits begins(pixels.count());
    for (const Label i : pixels.first) begins.set(i);
    borders = PixelBits(pixels.count());
    for (std::ptrdiff_t w = 0; w < borders.words(); ++w) {
        const auto first = static_cast<Label>(w * kBits);
        Word found = differing_bits(basin + first, basin + first - 1, kBits) & ~begins.word(w);
        const Label beyond = pixels.count() - first;
        if (beyond < kBits) found &= (Word{1} << beyond) - 1;
        borders.word(w) = found;
        for (; found != 0; found &= found - 1) {
            const Label here = first + count_zeros(found);
            add(here, here - 1);
        }
    }
    const Runs& runs = pixels.runs;
    for (std::ptrdiff_t r = 0; r + 1 < pixels.rows(); ++r) {
        for_each_touch(runs, r, [&](std::ptrdiff_t i, std::ptrdiff_t k) {
            const Label begin = std::max(runs.runs[i].begin, runs.runs[k].begin);
            Label count = std::min(runs.runs[i].end, runs.runs[k].end) - begin;
            Label here = pixels.first[i] + begin - runs.runs[i].begin;
            Label there = pixels.first[k] + begin - runs.runs[k].begin;
            for (; count > 0; count -= kBlock, here += kBlock, there += kBlock) {
                Word found = differing_bits_16(basin + here, basin + there);
                if (count < kBlock) found &= (Word{1} << count) - 1;
                for (; found != 0; found &= found - 1) {
                    add(here + count_zeros(found), there + count_zeros(found));
                }
            }
        });
    }
    return table.saddles();
}

template <typename Index>
Index find_root(std::vector<Index>& parent, Index i) {
    while (parent[i] != i) i = parent[i] = parent[parent[i]];
    return i;
}

// The basin that stands for each basin's group.
std::vector<Label> join(const Bytes& height, const std::vector<Label>& summits,
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
    for (const Saddle& s : candidates) {
        Label a = find_root(group, s.a);
        Label b = find_root(group, s.b);
        if (a == b) continue;
        if (higher(b, a)) std::swap(a, b);
        if (level(b) - s.height < min_rise) group[b] = a;
    }
    for (std::size_t i = 0; i < group.size(); ++i) group[i] = find_root(group, static_cast<Label>(i));
    return group;
}

// Of runs of which some touch, from row to row, and are the same: for each run the first, in raster order, of
// those that hang together.
template <typename Same>
std::vector<std::ptrdiff_t> connect(const Runs& runs, const Same& same) {
    std::vector<std::ptrdiff_t> root(runs.runs.size());
    std::iota(root.begin(), root.end(), std::ptrdiff_t{0});
    const auto rows = static_cast<std::ptrdiff_t>(runs.row_begin.size()) - 1;
    for (std::ptrdiff_t r = 0; r + 1 < rows; ++r) {
        for_each_touch(runs, r, [&](std::ptrdiff_t i, std::ptrdiff_t k) {
            if (!same(i, k)) return;
            const auto [first, other] = std::minmax({find_root(root, i), find_root(root, k)});
            root[other] = first;
        });
    }
    for (std::ptrdiff_t& i : root) i = root[i];  // a root comes before what it holds
    return root;
}

// The mask's pixels, by what is found of them.
struct Groups {
    Label basin_of(Label pixel) const { return -1 - basin[pixel]; }
    Label group_of(Label pixel) const { return group[basin_of(pixel)]; }

    Basins basin;              // -1 - the basin
    PixelBits borders;         // whether it differs from that of the pixel before in its run
    std::vector<Label> group;  // of each basin the one that stands for its group
};

// Steps 1 and 2.
Groups groups_of(const Bytes& height, const Pixels& pixels, std::ptrdiff_t cols, int min_rise) {
    Groups found;
    std::vector<Label> summits;
    found.basin = climb(height, pixels, cols, summits);
    const auto saddles = find_saddles(height, found.basin, pixels, found.borders);
    found.group = join(height, summits, saddles, min_rise);
    return found;
}

// Runs that may touch where the group changes, and the group of each.
struct Parts : Runs {
    std::vector<Label> group;
};

// The runs of those pixels of the mask that are `inside`, cut where the group changes.
Parts cut_to_groups(const Pixels& pixels, const Groups& groups, const PixelBits& inside) {
    Parts parts;
    parts.runs.reserve(pixels.runs.runs.size());
    parts.group.reserve(pixels.runs.runs.size());
    parts.row_begin.reserve(pixels.runs.row_begin.size());
    end_row(parts);
    for (std::ptrdiff_t r = 0; r < pixels.rows(); ++r) {
        for (auto i = pixels.runs.row_begin[r]; i < pixels.runs.row_begin[r + 1]; ++i) {
            const Run run = pixels.runs.runs[i];
            auto end = run.begin - 1;  // of the last part of this run
            for (std::int32_t c = run.begin; c < run.end; c += kBits) {
                const Label place = pixels.first[i] + c - run.begin;
                Word rest = inside.from(place, run.end - c);
                const Word borders = groups.borders.from(place, run.end - c);
                while (rest != 0) {
                    const int k = count_zeros(rest);
                    const Word stops = (~rest | borders) & ~(((Word{1} << k) << 1) - 1);
                    const int stop = stops != 0 ? count_zeros(stops) : static_cast<int>(kBits);
                    const Label group = groups.group_of(place + k);
                    if (c + k == end && group == parts.group.back()) {
                        parts.runs.back().end = c + stop;
                    } else {
                        parts.runs.push_back({c + k, c + stop});
                        parts.group.push_back(group);
                    }
                    end = c + stop;
                    rest = stops != 0 ? rest >> stop << stop : 0;
                }
            }
        }
        end_row(parts);
    }
    return parts;
}

// Sets row by row to 0 and to `value(number of the run)`.
template <typename Value>
void paint(const Runs& runs, Plane<Label> image, const Value& value) {
    for (std::ptrdiff_t r = 0; r < image.rows; ++r) {
        Label* const row = image.row(r);
        std::fill(row, row + image.cols, 0);
        for (auto i = runs.row_begin[r]; i < runs.row_begin[r + 1]; ++i) {
            std::fill(row + runs.runs[i].begin, row + runs.runs[i].end, value(i));
        }
    }
}

// Numbers the 4-connected parts of groups that have at least so many pixels: all, or of each group the
// largest alone, of equal ones the first in raster order.
Label paint_parts(const Parts& parts, bool largest_only, double min_px, Plane<Label> nuclei) {
    const auto root =
        connect(parts, [&](std::ptrdiff_t i, std::ptrdiff_t k) { return parts.group[i] == parts.group[k]; });
    const auto count = static_cast<std::ptrdiff_t>(root.size());
    std::vector<std::int64_t> area(root.size(), 0);
    for (std::ptrdiff_t i = 0; i < count; ++i) area[root[i]] += parts.runs[i].end - parts.runs[i].begin;
    std::vector<std::ptrdiff_t> largest;  // of each group
    if (largest_only) {
        for (std::ptrdiff_t i = 0; i < count; ++i) {
            const auto group = static_cast<std::size_t>(parts.group[i]);
            if (group >= largest.size()) largest.resize(group + 1, -1);
            std::ptrdiff_t& best = largest[group];
            if (root[i] == i && (best < 0 || area[i] > area[best])) best = i;
        }
    }
    Label last = 0;
    std::vector<Label> number(root.size(), 0);
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const bool wanted = largest_only ? largest[parts.group[i]] == i : root[i] == i;
        if (wanted && static_cast<double>(area[i]) >= min_px) number[i] = ++last;
    }
    paint(parts, nuclei, [&](std::ptrdiff_t i) { return number[root[i]]; });
    return last;
}

// The pixels of each group that have at least `share` of its highest probability.
PixelBits near_peaks(const Bytes& probability, const Pixels& pixels, const Groups& groups, double share) {
    const std::vector<Label>& group = groups.group;
    // Of basins, which are looked up once, and then of groups.
    std::vector<std::uint8_t> highest(group.size());
    for (Label i = 0; i < pixels.count(); ++i) {
        std::uint8_t& peak = highest[groups.basin_of(i)];
        if (probability[i] > peak) peak = probability[i];  // seldom: no store for the next load to wait for
    }
    for (std::size_t i = 0; i < group.size(); ++i) {
        highest[group[i]] = std::max(highest[group[i]], highest[i]);
    }
    std::vector<std::uint8_t> lowest(group.size());
    for (std::size_t i = 0; i < group.size(); ++i) {
        lowest[i] = static_cast<std::uint8_t>(std::ceil(share * highest[group[i]]));
    }
    PixelBits inside(pixels.count());
    for (std::ptrdiff_t w = 0; w < inside.words(); ++w) {
        const auto first = static_cast<Label>(w * kBits);
        const Label count = std::min<Label>(kBits, pixels.count() - first);
        std::uint8_t bytes[kBits] = {};
        for (Label k = 0; k < count; ++k) {
            bytes[k] = probability[first + k] >= lowest[groups.basin_of(first + k)];
        }
        inside.word(w) = nonzero_bits(bytes);
    }
    return inside;
}

// Closes 4-connected holes of at most `max_px` pixels that do not reach the edge of the image and have one
// group at both ends of all their rows: what lies between nuclei is no hole.
Parts fill_holes(const Parts& mask, std::ptrdiff_t cols, double max_px) {
    constexpr Label kNone = -1;  // two groups, or the edge
    const auto rows = static_cast<std::ptrdiff_t>(mask.row_begin.size()) - 1;
    Parts gaps;  // the group of each is the one at both its ends
    end_row(gaps);
    for (std::ptrdiff_t r = 0; r < rows; ++r) {
        std::int32_t begin = 0;
        Label group = kNone;
        const auto add_gap = [&](std::int32_t end, Label next) {
            if (begin == end) return;
            gaps.runs.push_back({begin, end});
            gaps.group.push_back(group == next && r > 0 && r + 1 < rows ? group : kNone);
        };
        for (auto i = mask.row_begin[r]; i < mask.row_begin[r + 1]; ++i) {
            add_gap(mask.runs[i].begin, mask.group[i]);
            begin = mask.runs[i].end;
            group = mask.group[i];
        }
        add_gap(static_cast<std::int32_t>(cols), kNone);
        end_row(gaps);
    }
    const auto root = connect(gaps, [](std::size_t, std::size_t) { return true; });
    std::vector<std::int64_t> area(root.size(), 0);
    for (std::size_t i = 0; i < root.size(); ++i) {
        area[root[i]] += gaps.runs[i].end - gaps.runs[i].begin;
        if (gaps.group[i] != gaps.group[root[i]]) gaps.group[root[i]] = kNone;
    }
    Parts filled;
    filled.runs.reserve(mask.runs.size());
    filled.group.reserve(mask.runs.size());
    filled.row_begin.reserve(mask.row_begin.size());
    end_row(filled);
    for (std::ptrdiff_t r = 0; r < rows; ++r) {
        auto gap = gaps.row_begin[r];
        std::int32_t begin = 0;
        for (auto i = mask.row_begin[r]; i < mask.row_begin[r + 1]; ++i) {
            const Run run = mask.runs[i];
            const bool apart = run.begin > begin;
            begin = run.end;
            if (apart) {
                const auto hole = root[gap++];
                if (gaps.group[hole] != kNone && static_cast<double>(area[hole]) <= max_px) {
                    filled.runs.back().end = run.end;
                    continue;
                }
            }
            filled.runs.push_back(run);
            filled.group.push_back(mask.group[i]);
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

}  // namespace

Label split_instances(Plane<const std::uint8_t> height, Plane<const bool> mask, int min_rise,
                      Plane<Label> nuclei) {
    expect_size(nuclei, "height");
    if (nuclei.size() == 0) return 0;
    // NumPy's bool may hold any byte.
    const Plane<const std::uint8_t> bytes{reinterpret_cast<const std::uint8_t*>(mask.data), mask.rows,
                                          mask.cols};
    const Pixels pixels(mask_runs(bytes, 1));
    const Groups groups = groups_of(pixels.values_of(height), pixels, nuclei.cols, min_rise);
    return paint_parts(cut_to_groups(pixels, groups, PixelBits::all(pixels.count())), true, 0, nuclei);
}

Label find_nuclei(Plane<const std::uint8_t> probability, Plane<const std::uint8_t> height,
                  const NucleiSettings& settings, Plane<Label> nuclei) {
    expect_size(nuclei, "probability");
    if (nuclei.size() == 0) return 0;
    const Pixels pixels(mask_runs(probability, settings.threshold));
    const Groups groups =
        groups_of(pixels.smoothed_values_of(height), pixels, nuclei.cols, settings.min_rise);
    const PixelBits inside = settings.peak_share > 0 ? near_peaks(pixels.values_of(probability), pixels,
                                                                  groups, settings.peak_share)
                                                     : PixelBits::all(pixels.count());
    const Parts parts = cut_to_groups(pixels, groups, inside);
    return paint_parts(fill_holes(parts, nuclei.cols, settings.max_hole_px), false, settings.min_area_px,
                       nuclei);
}

}  // namespace nucfast
