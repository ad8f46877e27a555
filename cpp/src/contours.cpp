#include "nucfast/contours.hpp"

#include <algorithm>
#include <cstddef>

#include "nucfast/label_runs.hpp"

namespace nucfast {
namespace {

struct Run {
    std::int32_t begin;
    std::int32_t end;
    Label label;
    std::int64_t part;  // index of a run of the same part, never after this one; at last the part's first run
};

struct Part {
    Label label;
    std::int32_t row;  // first pixel
    std::int32_t col;
    std::int64_t id;
};

// The runs of all rows, each with the part it belongs to.
class Parts {
  public:
    explicit Parts(Plane<const Label> labels) : first_(static_cast<std::size_t>(labels.rows) + 1) {
        for (std::ptrdiff_t r = 0; r < labels.rows; ++r) {
            for_each_run(
                labels.row(r), labels.cols, [&](std::ptrdiff_t begin, std::ptrdiff_t end, Label label) {
                    runs_.push_back({static_cast<std::int32_t>(begin), static_cast<std::int32_t>(end), label,
                                     static_cast<std::int64_t>(runs_.size())});
                });
            first_[r + 1] = static_cast<std::int64_t>(runs_.size());
            if (r > 0) join(first_[r - 1], first_[r], first_[r + 1]);
        }
        for (auto& run : runs_) run.part = runs_[run.part].part;  // earlier runs are already flat
    }

    // Ordered by label, then by first pixel in raster order.
    std::vector<Part> list() const {
        std::vector<Part> parts;
        for (std::size_t r = 0; r + 1 < first_.size(); ++r) {
            for (std::int64_t i = first_[r]; i < first_[r + 1]; ++i) {
                if (runs_[i].part == i) {
                    parts.push_back({runs_[i].label, static_cast<std::int32_t>(r), runs_[i].begin, i});
                }
            }
        }
        std::stable_sort(parts.begin(), parts.end(),
                         [](const Part& a, const Part& b) { return a.label < b.label; });
        return parts;
    }

    // The part of a pixel that is not background.
    std::int64_t at(std::int32_t row, std::int32_t col) const {
        const auto begin = runs_.begin() + first_[row];
        const auto end = runs_.begin() + first_[row + 1];
        return std::upper_bound(begin, end, col, [](std::int32_t c, const Run& run) { return c < run.end; })
            ->part;
    }

  private:
    std::int64_t root(std::int64_t i) {
        while (runs_[i].part != i) i = runs_[i].part = runs_[runs_[i].part].part;
        return i;
    }

    // Unites runs [above, here) of one row with runs [here, end) of the next where they share a pixel edge.
    void join(std::int64_t above, std::int64_t here, std::int64_t end) {
        for (std::int64_t a = above, b = here; a < here && b < end;) {
            if (runs_[a].label == runs_[b].label && runs_[a].begin < runs_[b].end &&
                runs_[b].begin < runs_[a].end) {
                const std::int64_t i = root(a);
                const std::int64_t j = root(b);
                runs_[std::max(i, j)].part = std::min(i, j);
            }
            (runs_[a].end < runs_[b].end) ? ++a : ++b;
        }
    }

    std::vector<Run> runs_;
    std::vector<std::int64_t> first_;  // (rows + 1) index of each row's first run
};

// Headings, in the order of right turns (y points down).
enum Heading { east, south, west, north };
constexpr std::int32_t step_x[] = {1, 0, -1, 0};
constexpr std::int32_t step_y[] = {0, 1, 0, -1};
// From vertex (x, y), the pixel ahead on the right hand; the one on the left is that of the previous heading.
constexpr std::int32_t right_row[] = {0, 0, -1, -1};
constexpr std::int32_t right_col[] = {0, -1, -1, 0};

class Walker {
  public:
    Walker(Plane<const Label> labels, const Parts& parts) : labels_(labels), parts_(parts) {}

    // Appends the ring of `part` to `points`.
    void walk(const Part& part, RingStyle style, std::vector<float>& points) const {
        const auto push = [&points](float x, float y) {
            points.push_back(x);
            points.push_back(y);
        };
        const auto start = static_cast<std::ptrdiff_t>(points.size());
        if (style == RingStyle::edges) push(static_cast<float>(part.col), static_cast<float>(part.row));

        // Nothing of the part lies above its first pixel, so the walk comes to its corner from the south.
        std::int32_t x = part.col;
        std::int32_t y = part.row;
        int before = north;
        int heading = east;
        do {
            x += step_x[heading];
            y += step_y[heading];
            const int next = turn(part, x, y, heading);
            if (style == RingStyle::edges) {
                if (next != heading) push(static_cast<float>(x), static_cast<float>(y));
            } else if (next != before) {  // else the segments to and from this midpoint have one direction
                push(static_cast<float>(x) - 0.5F * static_cast<float>(step_x[heading]),
                     static_cast<float>(y) - 0.5F * static_cast<float>(step_y[heading]));
            }
            before = heading;
            heading = next;
        } while (x != part.col || y != part.row);
        if (style == RingStyle::midpoints) push(points[start], points[start + 1]);
    }

  private:
    bool has(Label label, std::int32_t row, std::int32_t col) const {
        return row >= 0 && row < labels_.rows && col >= 0 && col < labels_.cols && labels_(row, col) == label;
    }

    int turn(const Part& part, std::int32_t x, std::int32_t y, int heading) const {
        const int left_turn = (heading + 3) % 4;
        const std::int32_t left_row = y + right_row[left_turn];
        const std::int32_t left_col = x + right_col[left_turn];
        const bool left = has(part.label, left_row, left_col);
        if (has(part.label, y + right_row[heading], x + right_col[heading]))
            return left ? left_turn : heading;
        if (left && parts_.at(left_row, left_col) == part.id) return left_turn;
        return (heading + 1) % 4;
    }

    Plane<const Label> labels_;
    const Parts& parts_;
};

}  // namespace

Rings contours(Plane<const Label> labels, RingStyle style) {
    expect_sides(labels, 1 << 23);
    const Parts parts(labels);
    const Walker walker(labels, parts);
    Rings rings;
    rings.offsets.push_back(0);
    for (const Part& part : parts.list()) {
        walker.walk(part, style, rings.points);
        rings.labels.push_back(part.label);
        rings.offsets.push_back(static_cast<std::int64_t>(rings.points.size() / 2));
    }
    return rings;
}

}  // namespace nucfast
