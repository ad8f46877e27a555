#include "nucfast/rasterize.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace nucfast {
namespace {

void check(Plane<const double> vertices, const std::int64_t* offsets, const Label* values,
           std::ptrdiff_t count) {
    if (offsets[0] != 0 || offsets[count] != vertices.rows || !std::is_sorted(offsets, offsets + count + 1)) {
        throw std::invalid_argument("offsets: expected values rising from 0 to the number of vertices, " +
                                    std::to_string(vertices.rows));
    }
    for (std::ptrdiff_t i = 0; i < vertices.size(); ++i) {
        if (!(std::abs(vertices.data[i]) <= 1e15)) {
            throw std::invalid_argument("vertices: expected finite coordinates of at most 1e15, got " +
                                        std::to_string(vertices.data[i]));
        }
    }
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        if (values[i] < 0) {
            throw std::invalid_argument("values: expected values >= 0, got " + std::to_string(values[i]));
        }
    }
}

// The first pixel whose centre is not before `position`, within [0, limit].
std::ptrdiff_t first_centre(double position, std::ptrdiff_t limit) {
    return static_cast<std::ptrdiff_t>(
        std::clamp(std::ceil(position - 0.5), 0.0, static_cast<double>(limit)));
}

}  // namespace

void rasterize(Plane<const double> vertices, const std::int64_t* offsets, const Label* values,
               std::ptrdiff_t count, Plane<Label> out) {
    check(vertices, offsets, values, count);
    std::vector<std::pair<std::ptrdiff_t, double>> cuts;  // (row, x)
    for (std::ptrdiff_t polygon = 0; polygon < count; ++polygon) {
        if (offsets[polygon] == offsets[polygon + 1]) continue;
        cuts.clear();
        // Closes the ring; an edge of no length if it is closed.
        const double* from = vertices.row(offsets[polygon + 1] - 1);
        for (std::int64_t i = offsets[polygon]; i < offsets[polygon + 1]; ++i) {
            const double* to = vertices.row(i);
            const double* top = from[1] < to[1] ? from : to;
            const double* bottom = from[1] < to[1] ? to : from;
            // Not a number where the edge is level, and then no row uses it.
            const double slope = (bottom[0] - top[0]) / (bottom[1] - top[1]);
            const std::ptrdiff_t end = first_centre(bottom[1], out.rows);
            for (std::ptrdiff_t r = first_centre(top[1], out.rows); r < end; ++r) {
                cuts.emplace_back(r, top[0] + (static_cast<double>(r) + 0.5 - top[1]) * slope);
            }
            from = to;
        }
        std::sort(cuts.begin(), cuts.end());
        // A closed ring cuts each row an even number of times.
        for (std::size_t i = 0; i + 1 < cuts.size(); i += 2) {
            Label* row = out.row(cuts[i].first);
            const std::ptrdiff_t end = first_centre(cuts[i + 1].second, out.cols);
            for (std::ptrdiff_t c = first_centre(cuts[i].second, out.cols); c < end; ++c) {
                row[c] = row[c] == 0 ? values[polygon] : row[c];
            }
        }
    }
}

}  // namespace nucfast
