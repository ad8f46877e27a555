// Label maps read as horizontal runs of one value: what most per-nucleus kernels are built on, because a
// nucleus has twenty times fewer runs than pixels.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "nucfast/bits.hpp"
#include "nucfast/view.hpp"

namespace nucfast {

// Calls `body(begin, end, label)` for the runs of non-zero labels of one row, from left to right.
// Throws std::invalid_argument at a negative label.
template <typename Body>
void for_each_run(const Label* row, std::ptrdiff_t cols, Body&& body) {
    std::ptrdiff_t begin = 0;
    const auto close = [&](std::ptrdiff_t end) {
        const Label label = row[begin];
        if (label < 0) {
            throw std::invalid_argument("labels: expected values >= 0, got " + std::to_string(label));
        }
        if (label != 0) body(begin, end, label);
        begin = end;
    };
    for (std::ptrdiff_t first = 1; first < cols; first += kBits) {
        const std::ptrdiff_t count = std::min(kBits, cols - first);
        Word ends = differing_bits(row + first, row + first - 1, count);
        for (; ends != 0; ends &= ends - 1) close(first + count_zeros(ends));
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
