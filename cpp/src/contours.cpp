#include "nucfast/contours.hpp"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

#include "nucfast/components.hpp"
#include "nucfast/label_runs.hpp"
#include "nucfast/parallel.hpp"

namespace nucfast {
namespace {

struct Part {
    Label label;
    std::int32_t row;  // first pixel
    std::int32_t col;
    Label number;  // in raster order of the first pixel, from 1
};

// By first pixel in raster order.
std::vector<Part> list_parts(Plane<const Label> labels, const RunComponents& runs) {
    std::vector<Part> parts;
    parts.reserve(static_cast<std::size_t>(runs.count));
    for (std::ptrdiff_t r = 0; r < labels.rows; ++r) {
        for (auto i = runs.row_begin[r]; i < runs.row_begin[r + 1]; ++i) {
            if (runs.labels[i] != static_cast<Label>(parts.size() + 1)) continue;  // seen before
            const std::int32_t col = runs.runs[i].begin;
            const Label label = labels(r, col);
            if (label < 0) {
                throw std::invalid_argument("labels: expected values >= 0, got " + std::to_string(label));
            }
            parts.push_back({label, static_cast<std::int32_t>(r), col, runs.labels[i]});
        }
    }
    return parts;
}

// Headings, in the order of right turns (y points down).
enum Heading { east, south, west, north };
constexpr std::int32_t step_x[] = {1, 0, -1, 0};
constexpr std::int32_t step_y[] = {0, 1, 0, -1};
// From vertex (x, y), the pixel ahead on the right hand; the one on the left is that of the previous heading.
constexpr std::int32_t right_row[] = {0, 0, -1, -1};
constexpr std::int32_t right_col[] = {0, -1, -1, 0};

class Walker {
  public:
    Walker(Plane<const Label> labels, const RunComponents& runs) : labels_(labels), runs_(runs) {}

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

    // The part of a pixel that is not background.
    Label part_at(std::int32_t row, std::int32_t col) const {
        const auto begin = runs_.runs.begin() + runs_.row_begin[row];
        const auto end = runs_.runs.begin() + runs_.row_begin[row + 1];
        const auto run =
            std::upper_bound(begin, end, col, [](std::int32_t c, const Run& other) { return c < other.end; });
        return runs_.labels[static_cast<std::size_t>(run - runs_.runs.begin())];
    }

    int turn(const Part& part, std::int32_t x, std::int32_t y, int heading) const {
        const int left_turn = (heading + 3) % 4;
        const std::int32_t left_row = y + right_row[left_turn];
        const std::int32_t left_col = x + right_col[left_turn];
        const bool left = has(part.label, left_row, left_col);
        if (has(part.label, y + right_row[heading], x + right_col[heading]))
            return left ? left_turn : heading;
        if (left && part_at(left_row, left_col) == part.number) return left_turn;
        return (heading + 1) % 4;
    }

    Plane<const Label> labels_;
    const RunComponents& runs_;
};

}  // namespace

Rings contours(Plane<const Label> labels, RingStyle style, int threads) {
    expect_sides(labels, 1 << 23);
    const RunComponents runs = run_components(labels, 4, threads);
    const std::vector<Part> parts = list_parts(labels, runs);
    const Walker walker(labels, runs);

    // Neighbours are walked after one another, since they share cache lines, whatever their labels.
    struct Ring {
        Label label;
        std::int32_t piece;
        std::int64_t begin;  // of its floats among those of the piece
        std::int64_t size;
    };
    std::vector<Ring> found(parts.size());
    std::vector<std::vector<float>> pieces(static_cast<std::size_t>(std::max(threads, 1)));
    parallel_for(static_cast<std::ptrdiff_t>(parts.size()), threads,
                 [&](std::ptrdiff_t first, std::ptrdiff_t last, int piece) {
                     std::vector<float>& points = pieces[static_cast<std::size_t>(piece)];
                     for (std::ptrdiff_t i = first; i < last; ++i) {
                         const auto begin = static_cast<std::int64_t>(points.size());
                         walker.walk(parts[i], style, points);
                         found[i] = {parts[i].label, piece, begin,
                                     static_cast<std::int64_t>(points.size()) - begin};
                     }
                 });

    std::stable_sort(found.begin(), found.end(),
                     [](const Ring& a, const Ring& b) { return a.label < b.label; });
    Rings rings;
    rings.labels.reserve(found.size());
    rings.offsets.reserve(found.size() + 1);
    rings.offsets.push_back(0);
    for (const Ring& ring : found) {
        rings.labels.push_back(ring.label);
        rings.offsets.push_back(rings.offsets.back() + ring.size / 2);
    }
    rings.points.resize(static_cast<std::size_t>(2 * rings.offsets.back()));
    parallel_for(static_cast<std::ptrdiff_t>(found.size()), threads,
                 [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
                     for (std::ptrdiff_t i = first; i < last; ++i) {
                         const float* const points = pieces[found[i].piece].data() + found[i].begin;
                         std::copy_n(points, found[i].size, rings.points.data() + 2 * rings.offsets[i]);
                     }
                 });
    return rings;
}

}  // namespace nucfast
