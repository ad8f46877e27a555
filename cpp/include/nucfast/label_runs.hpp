// Label maps read as horizontal runs of one value: what most per-nucleus kernels are built on, because a
// nucleus has twenty times fewer runs than pixels.
#pragma once

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "nucfast/view.hpp"

namespace nucfast {

// Calls `body(begin, end, label)` for the runs of non-zero labels of one row, from left to right.
// Throws std::invalid_argument at a negative label.
template <typename Body>
void for_each_run(const Label* row, std::ptrdiff_t cols, Body&& body) {
    constexpr std::ptrdiff_t block = 256;
    std::array<std::ptrdiff_t, block> ends;
    std::ptrdiff_t begin = 0;
    const auto close = [&](std::ptrdiff_t end) {
        const Label label = row[begin];
        if (label < 0) {
            throw std::invalid_argument("labels: expected values >= 0, got " + std::to_string(label));
        }
        if (label != 0) body(begin, end, label);
        begin = end;
    };
    for (std::ptrdiff_t first = 1; first < cols; first += block) {
        const std::ptrdiff_t last = std::min(first + block, cols);
        std::ptrdiff_t count = 0;
        for (std::ptrdiff_t c = first; c < last; ++c) {  // where runs end is hard to predict: no branch on it
            ends[count] = c;
            count += row[c] != row[c - 1];
        }
        for (std::ptrdiff_t i = 0; i < count; ++i) close(ends[i]);
    }
    if (cols > 0) close(cols);
}

// Throws std::invalid_argument unless rows and columns are at most `limit`.
inline void expect_sides(const Plane<const Label>& labels, std::ptrdiff_t limit) {
    if (labels.rows > limit || labels.cols > limit) {
        throw std::invalid_argument("labels: expected sides of at most " + std::to_string(limit) +
                                    " px, got " + std::to_string(labels.rows) + " x " +
                                    std::to_string(labels.cols));
    }
}

}  // namespace nucfast
