#include "nucfast/properties.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "nucfast/bits.hpp"
#include "nucfast/components.hpp"
#include "nucfast/label_runs.hpp"

namespace nucfast {
namespace {

struct Region {
    std::int64_t area = 0;
    std::int32_t min_row = -1;
    std::int32_t first_col = -1;
    std::int32_t max_row = 0;  // half-open, as max_col
    std::int32_t min_col = std::numeric_limits<std::int32_t>::max();
    std::int32_t max_col = 0;
    double r = 0, c = 0, rr = 0, rc = 0, cc = 0;     // about (min_row, first_col)
    std::array<std::int64_t, 4> border_pixels = {};  // by Step
    std::int64_t extents = 0;
    std::int64_t last_extent = 0;  // valid after the first
};

// The columns a label spans in one row.
struct Extent {
    Label label;
    std::int32_t row;
    std::int32_t begin;
    std::int32_t end;
};

void expect_known(Label label, std::ptrdiff_t count) {
    if (label > count) {
        throw std::invalid_argument("labels: expected values of at most count = " + std::to_string(count) +
                                    ", got " + std::to_string(label));
    }
}

void add_run(std::int32_t row, std::int32_t begin, std::int32_t end, Label label, Region& region,
             std::vector<Extent>& extents) {
    if (region.area == 0) {
        region.min_row = row;
        region.first_col = begin;
    }
    if (region.max_row == row + 1) {
        extents[region.last_extent].end = end;
    } else {
        region.last_extent = static_cast<std::int64_t>(extents.size());
        ++region.extents;
        extents.push_back({label, row, begin, end});
    }
    region.max_row = row + 1;
    region.min_col = std::min(region.min_col, begin);
    region.max_col = std::max(region.max_col, end);

    region.area += end - begin;
    const double pixels = end - begin;
    const double r = row - region.min_row;
    const double middle = 0.5 * (static_cast<double>(begin) + end - 1) - region.first_col;
    const double sum = pixels * middle;
    region.r += pixels * r;
    region.c += sum;
    region.rr += pixels * r * r;
    region.rc += sum * r;
    region.cc += sum * middle + pixels * (pixels * pixels - 1) / 12;
}

// By label, those of one label in rising rows: a counting sort, because following each label through the rows
// would miss the cache at every step.
std::vector<Extent> sorted(const std::vector<Extent>& extents, const std::vector<Region>& regions) {
    std::vector<std::int64_t> next(regions.size() + 1);
    for (std::size_t i = 0; i < regions.size(); ++i) next[i + 1] = next[i] + regions[i].extents;
    std::vector<Extent> by_label(extents.size());
    for (const Extent& extent : extents) by_label[next[extent.label - 1]++] = extent;
    return by_label;
}

// One side of a hull: the corners (y, x) that are convex towards greater x. Corners come with falling y.
class Chain {
  public:
    void clear() { corners_.clear(); }

    void add(std::int64_t y, std::int64_t x) {
        while (corners_.size() >= 2) {
            const Corner& a = corners_[corners_.size() - 2];
            const Corner& b = corners_.back();
            if ((b.x - a.x) * (a.y - y) > (x - a.x) * (a.y - b.y)) break;  // b lies beyond the line from a
            corners_.pop_back();
        }
        corners_.push_back({y, x});
    }

    // Twice the area between the chain and x = 0.
    std::int64_t area() const {
        std::int64_t sum = 0;
        for (std::size_t i = 1; i < corners_.size(); ++i) {
            sum += (corners_[i - 1].y - corners_[i].y) * (corners_[i - 1].x + corners_[i].x);
        }
        return sum;
    }

  private:
    struct Corner {
        std::int64_t y;
        std::int64_t x;
    };
    std::vector<Corner> corners_;
};

class Hull {
  public:
    // The area of the hull of the extents [first, last) of one label, in rising rows.
    double area(const Extent* first, const Extent* last) {
        left_.clear();
        right_.clear();
        std::int64_t y = last[-1].row + std::int64_t{1};
        std::int64_t begin = last[-1].begin;
        std::int64_t end = last[-1].end;
        for (const Extent* extent = last; extent-- != first;) {
            if (extent->row + std::int64_t{1} ==
                y) {  // the lower side of this row is the upper side of the last
                begin = std::min<std::int64_t>(begin, extent->begin);
                end = std::max<std::int64_t>(end, extent->end);
            } else {
                add(y, begin, end);
                begin = extent->begin;
                end = extent->end;
                y = extent->row + std::int64_t{1};
            }
            add(y, begin, end);
            y = extent->row;
            begin = extent->begin;
            end = extent->end;
        }
        add(y, begin, end);
        return 0.5 * static_cast<double>(right_.area() + left_.area());
    }

  private:
    void add(std::int64_t y, std::int64_t begin, std::int64_t end) {
        left_.add(y, -begin);
        right_.add(y, end);
    }

    Chain left_;
    Chain right_;
};

// What a border pixel adds to the perimeter.
enum Step : std::uint8_t { none, straight, diagonal, mixed };

// Indexed by 1 + 2 * (border pixels among the 4-neighbours) + 10 * (among the diagonal neighbours).
constexpr std::array<Step, 50> make_steps() {
    std::array<Step, 50> steps = {};
    for (const int code : {5, 7, 15, 17, 25, 27}) steps[code] = straight;
    for (const int code : {21, 33}) steps[code] = diagonal;
    for (const int code : {13, 23}) steps[code] = mixed;
    return steps;
}
constexpr std::array<Step, 50> steps = make_steps();

// Labels of the pixels in runs of which one of the four neighbours differs, else 0.
NUCFAST_INLINE void keep_border_body(const Label* above, const Label* here, const Label* below,
                                     std::ptrdiff_t cols, const Run* runs, std::ptrdiff_t count,
                                     Label* border) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const Label l = here[runs[i].begin];
        const auto keep = [&](std::ptrdiff_t c) {
            const Label differs = (above[c] ^ l) | (below[c] ^ l);
            border[c] = differs != 0 && here[c] == l ? l : 0;
        };
        for (std::ptrdiff_t c = runs[i].begin; c < runs[i].end; c += kBlock) {
            if (c + kBlock <= cols) {
                for (std::ptrdiff_t k = 0; k < kBlock; ++k) keep(c + k);
            } else {
                for (; c < runs[i].end; ++c) keep(c);
            }
        }
        border[runs[i].begin] = l;
        border[runs[i].end - 1] = l;
    }
}
NUCFAST_VARIANTS(void, keep_border,
                 (const Label* above, const Label* here, const Label* below, std::ptrdiff_t cols,
                  const Run* runs, std::ptrdiff_t count, Label* border),
                 (above, here, below, cols, runs, count, border))

// Three rows of the map that hold labels on border pixels and 0 elsewhere, with a column of zeros on either
// side.
class Border {
  public:
    explicit Border(Plane<const Label> labels)
        : labels_(labels), pitch_(labels.cols + 1 + kBlock), rows_(static_cast<std::size_t>(3 * pitch_)) {}

    // Must be called for row 0, 1, ... in turn, and at the end once more, with no runs.
    void add_row(std::ptrdiff_t r, std::vector<Run>& runs, std::vector<Region>& regions) {
        Label* const border = row(r);
        std::fill_n(border, labels_.cols, 0);
        if (r == 0 || r + 1 >= labels_.rows) {
            for (const Run run : runs) {
                std::copy(labels_.row(r) + run.begin, labels_.row(r) + run.end, border + run.begin);
            }
        } else {
            const Label* const here = labels_.row(r);
            keep_border(here - labels_.cols, here, here + labels_.cols, labels_.cols, runs.data(),
                        static_cast<std::ptrdiff_t>(runs.size()), border);
        }
        if (r > 0) count(r - 1, regions);
        runs_.swap(runs);
    }

  private:
    // Of the row whose runs came last.
    void count(std::ptrdiff_t r, std::vector<Region>& regions) {
        const Label* const above = row(r - 1);
        const Label* const here = row(r);
        const Label* const below = row(r + 1);
        static constexpr std::array<Label, kBlock> zeros = {};
        for (const Run run : runs_) {
            for (std::ptrdiff_t first = run.begin; first < run.end; first += kBlock) {
                Word found = differing_bits_16(here + first, zeros.data());
                const std::ptrdiff_t left = run.end - first;
                if (left < kBlock) found &= (Word{1} << left) - 1;
                for (; found != 0; found &= found - 1) {
                    const std::ptrdiff_t c = first + count_zeros(found);
                    const Label label = here[c];
                    const int sides = (above[c] == label) + (below[c] == label) + (here[c - 1] == label) +
                                      (here[c + 1] == label);
                    const int corners = (above[c - 1] == label) + (above[c + 1] == label) +
                                        (below[c - 1] == label) + (below[c + 1] == label);
                    ++regions[label - 1].border_pixels[steps[1 + 2 * sides + 10 * corners]];
                }
            }
        }
    }

    Label* row(std::ptrdiff_t r) { return rows_.data() + (r + 3) % 3 * pitch_ + 1; }

    Plane<const Label> labels_;
    std::ptrdiff_t pitch_;
    std::vector<Label> rows_;
    std::vector<Run> runs_;
};

template <typename T, int channels>
void add_pixels(const T* pixels, std::ptrdiff_t count, double* sums) {
    using Sum = std::conditional_t<std::is_same_v<T, std::uint8_t>, std::uint32_t, double>;
    constexpr std::ptrdiff_t block = 1 << 23;  // 255 times this fits 32 bits
    for (std::ptrdiff_t begin = 0; begin < count; begin += block) {
        const std::ptrdiff_t end = std::min(begin + block, count);
        Sum partial[channels] = {};
        for (std::ptrdiff_t i = begin; i < end; ++i) {
            for (int k = 0; k < channels; ++k) partial[k] += pixels[i * channels + k];
        }
        for (int k = 0; k < channels; ++k) sums[k] += partial[k];
    }
}

// Adds the pixels [begin, end) of a row.
template <typename T>
void add_pixels(const Cutout<const T>& image, std::ptrdiff_t row, std::ptrdiff_t begin, std::ptrdiff_t end,
                double* sums) {
    const std::ptrdiff_t channels = image.channels;
    const T* const values = image.row(row) + begin * channels;
    if (channels == 1) return add_pixels<T, 1>(values, end - begin, sums);
    if (channels == 3) return add_pixels<T, 3>(values, end - begin, sums);
    if (channels == 4) return add_pixels<T, 4>(values, end - begin, sums);
    for (std::ptrdiff_t i = 0; i < (end - begin) * channels; i += channels) {
        for (std::ptrdiff_t k = 0; k < channels; ++k) sums[k] += values[i + k];
    }
}

// Adds a pixel so many times.
template <typename T>
void add_pixel(const Cutout<const T>& image, std::ptrdiff_t row, std::ptrdiff_t col, int times,
               double* sums) {
    const T* const values = image.row(row) + col * image.channels;
    for (std::ptrdiff_t k = 0; k < image.channels; ++k) {
        sums[k] += static_cast<double>(times) * static_cast<double>(values[k]);
    }
}

void add_run(const Intensity& intensity, std::ptrdiff_t row, std::ptrdiff_t begin, std::ptrdiff_t end,
             Label label) {
    std::visit([&](const auto& image) { add_pixels(image, row, begin, end, intensity.sums.row(label - 1)); },
               intensity.image);
}

}  // namespace

void region_properties(Plane<const Label> labels, std::ptrdiff_t count, const RegionColumns& out,
                       const std::vector<Intensity>& intensities) {
    expect_sides(labels, std::numeric_limits<std::int32_t>::max());
    std::vector<Region> regions(static_cast<std::size_t>(count));
    std::vector<Extent> extents;
    Border border(labels);
    std::vector<Run> runs;
    for (std::ptrdiff_t r = 0; r <= labels.rows; ++r) {
        runs.clear();
        if (r < labels.rows) {
            for_each_run(
                labels.row(r), labels.cols, [&](std::ptrdiff_t begin, std::ptrdiff_t end, Label label) {
                    expect_known(label, count);
                    const Run run = {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end)};
                    runs.push_back(run);
                    add_run(static_cast<std::int32_t>(r), run.begin, run.end, label, regions[label - 1],
                            extents);
                    for (const Intensity& intensity : intensities) {
                        add_run(intensity, r, begin, end, label);
                    }
                });
        }
        border.add_row(r, runs, regions);
    }

    extents = sorted(extents, regions);
    const Extent* extent = extents.data();
    Hull hull;
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const Region& region = regions[i];
        const bool exists = region.area > 0;
        const auto& n = region.border_pixels;
        out.area[i] = region.area;
        const std::int32_t box[] = {exists ? region.min_row : 0, exists ? region.min_col : 0, region.max_row,
                                    region.max_col};
        std::copy_n(box, 4, out.bbox + 4 * i);
        out.first_pixel[2 * i] = region.min_row;
        out.first_pixel[2 * i + 1] = region.first_col;
        const double moments[] = {region.r, region.c, region.rr, region.rc, region.cc};
        std::copy_n(moments, 5, out.moments + 5 * i);
        out.perimeter[i] = static_cast<double>(n[straight]) +
                           static_cast<double>(n[diagonal]) * std::sqrt(2.0) +
                           static_cast<double>(n[mixed]) * (0.5 * (1 + std::sqrt(2.0)));
        out.convex_area[i] = exists ? hull.area(extent, extent + region.extents) : 0;
        extent += region.extents;
    }
}

void intensity_sums(Plane<const Label> labels, std::ptrdiff_t count, std::int64_t* pixels,
                    const Intensity& intensity, Plane<const std::uint8_t> weights) {
    for (std::ptrdiff_t r = 0; r < labels.rows; ++r) {
        for_each_run(labels.row(r), labels.cols, [&](std::ptrdiff_t begin, std::ptrdiff_t end, Label label) {
            expect_known(label, count);
            double* const sums = intensity.sums.row(label - 1);
            if (weights.data == nullptr) {
                pixels[label - 1] += end - begin;
                add_run(intensity, r, begin, end, label);
                return;
            }
            for (std::ptrdiff_t c = begin; c < end; ++c) {
                const int weight = weights(r, c);
                pixels[label - 1] += weight;
                std::visit([&](const auto& image) { add_pixel(image, r, c, weight, sums); }, intensity.image);
            }
        });
    }
}

}  // namespace nucfast
