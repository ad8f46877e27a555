#include "nucfast/outline.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace nucfast {
namespace {

constexpr std::ptrdiff_t kSide = 2;  // samples per pixel and axis

struct Point {
    double x;
    double y;
};

// Samples [begin, end) along one axis.
struct Range {
    std::ptrdiff_t begin;
    std::ptrdiff_t end;
};

// Those whose centres, at i + 0.5, lie in [low, high], as far as they are in `within`.
Range samples_in(double low, double high, Range within) {
    const auto clamped = [&](double at) {
        return static_cast<std::ptrdiff_t>(
            std::clamp(at, static_cast<double>(within.begin), static_cast<double>(within.end)));
    };
    return {clamped(std::ceil(low - 0.5)), clamped(std::floor(high - 0.5) + 1)};
}

// The samples of a ring's box that it covers.
class Stencil {
  public:
    // A box of whole pixels.
    void open(Range rows, Range cols) {
        rows_ = rows;
        cols_ = cols;
        covered_.assign(static_cast<std::size_t>((rows.end - rows.begin) * (cols.end - cols.begin)), 0);
    }

    void add_line(Point a, Point b, double reach) {
        const Range rows = samples_in(std::min(a.y, b.y) - reach, std::max(a.y, b.y) + reach, rows_);
        const Range cols = samples_in(std::min(a.x, b.x) - reach, std::max(a.x, b.x) + reach, cols_);
        const double dx = b.x - a.x;
        const double dy = b.y - a.y;
        const double length2 = dx * dx + dy * dy;
        for (std::ptrdiff_t r = rows.begin; r < rows.end; ++r) {
            const double y = static_cast<double>(r) + 0.5 - a.y;
            for (std::ptrdiff_t c = cols.begin; c < cols.end; ++c) {
                const double x = static_cast<double>(c) + 0.5 - a.x;
                const double along = length2 > 0 ? std::clamp((x * dx + y * dy) / length2, 0.0, 1.0) : 0.0;
                const double to_x = x - along * dx;
                const double to_y = y - along * dy;
                if (to_x * to_x + to_y * to_y <= reach * reach) at(r, c) = 1;
            }
        }
    }

    // A sample is inside if an odd number of edges pass to its left.
    void flip_right_of(Point a, Point b) {
        if (a.y > b.y) std::swap(a, b);
        for (std::ptrdiff_t r = rows_.begin; r < rows_.end; ++r) {
            const double y = static_cast<double>(r) + 0.5;
            if (!(a.y <= y && y < b.y)) continue;
            const double x = a.x + (y - a.y) * ((b.x - a.x) / (b.y - a.y));
            const Range cols = samples_in(x, static_cast<double>(cols_.end), cols_);
            for (std::ptrdiff_t c = cols.begin; c < cols.end; ++c) at(r, c) ^= 1U;
        }
    }

    void paint(const std::uint8_t* color, Image<std::uint8_t> picture) {
        constexpr int all = kSide * kSide;
        for (std::ptrdiff_t r = rows_.begin; r < rows_.end; r += kSide) {
            for (std::ptrdiff_t c = cols_.begin; c < cols_.end; c += kSide) {
                const int count = at(r, c) + at(r, c + 1) + at(r + 1, c) + at(r + 1, c + 1);
                if (count == 0) continue;
                std::uint8_t* const pixel = picture.row(r / kSide) + c / kSide * 3;
                for (int k = 0; k < 3; ++k) {
                    pixel[k] = static_cast<std::uint8_t>(
                        (count * color[k] + (all - count) * pixel[k] + all / 2) / all);
                }
            }
        }
    }

  private:
    std::uint8_t& at(std::ptrdiff_t r, std::ptrdiff_t c) {
        return covered_[static_cast<std::size_t>((r - rows_.begin) * (cols_.end - cols_.begin) + c -
                                                 cols_.begin)];
    }

    Range rows_{0, 0};
    Range cols_{0, 0};
    std::vector<std::uint8_t> covered_;
};

void check(Plane<const double> vertices, const std::int64_t* offsets, std::ptrdiff_t count, double width) {
    if (offsets[0] != 0 || offsets[count] != vertices.rows || !std::is_sorted(offsets, offsets + count + 1)) {
        throw std::invalid_argument("offsets: expected values rising from 0 to the number of vertices, " +
                                    std::to_string(vertices.rows));
    }
    for (std::ptrdiff_t i = 0; i < vertices.size(); ++i) {
        if (!(std::abs(vertices.data[i]) <= 1e9)) {
            throw std::invalid_argument("vertices: expected finite coordinates of at most 1e9, got " +
                                        std::to_string(vertices.data[i]));
        }
    }
    if (!(width >= 0 && width <= 1000)) {
        throw std::invalid_argument("width: expected 0 to 1000, got " + std::to_string(width));
    }
}

// The pixels that hold samples between two positions, as samples.
Range box(double low, double high, std::ptrdiff_t pixels) {
    const Range samples = samples_in(low, high, {0, pixels * kSide});
    return {samples.begin / kSide * kSide, (samples.end + kSide - 1) / kSide * kSide};
}

}  // namespace

void draw_outlines(Plane<const double> vertices, const std::int64_t* offsets,
                   Plane<const std::uint8_t> colors, double width, Image<std::uint8_t> picture) {
    check(vertices, offsets, colors.rows, width);
    const double reach = 0.5 * width * kSide;
    std::vector<Point> ring;
    Stencil stencil;
    for (std::ptrdiff_t i = 0; i < colors.rows; ++i) {
        if (offsets[i] == offsets[i + 1]) continue;
        ring.clear();
        for (std::int64_t p = offsets[i]; p < offsets[i + 1]; ++p) {
            ring.push_back({vertices(p, 0) * kSide, vertices(p, 1) * kSide});
        }
        const auto by_x = [](Point a, Point b) { return a.x < b.x; };
        const auto by_y = [](Point a, Point b) { return a.y < b.y; };
        const auto [left, right] = std::minmax_element(ring.begin(), ring.end(), by_x);
        const auto [top, bottom] = std::minmax_element(ring.begin(), ring.end(), by_y);
        const Range rows = box(top->y - reach, bottom->y + reach, picture.rows);
        const Range cols = box(left->x - reach, right->x + reach, picture.cols);
        if (rows.begin >= rows.end || cols.begin >= cols.end) continue;
        stencil.open(rows, cols);
        Point before = ring.back();  // closes the ring; a closed one begins with a line of no length
        for (const Point here : ring) {
            if (width > 0) {
                stencil.add_line(before, here, reach);
            } else {
                stencil.flip_right_of(before, here);
            }
            before = here;
        }
        stencil.paint(colors.row(i), picture);
    }
}

}  // namespace nucfast
