// Label maps read as horizontal runs of one value: what most per-nucleus kernels are built on, because a
// nucleus has twenty times fewer runs than pixels.
#pragma once

#include <stdexcept>
#include <string>

#include "nucfast/view.hpp"

namespace nucfast {

// The end of the run of equal values that starts at `begin`, at most `cols`.
inline std::ptrdiff_t run_end(const Label* row, std::ptrdiff_t begin, std::ptrdiff_t cols) {
    const Label value = row[begin];
    std::ptrdiff_t c = begin + 1;
    for (; c + 8 <= cols; c += 8) {  // no branch inside: compilers turn it into vector compares
        Label differs = 0;
        for (std::ptrdiff_t i = 0; i < 8; ++i) differs |= row[c + i] ^ value;
        if (differs != 0) break;
    }
    while (c < cols && row[c] == value) ++c;
    return c;
}

// Calls `body(begin, end, label)` for the runs of non-zero labels of one row, from left to right.
// Throws std::invalid_argument at a negative label.
template <typename Body>
void for_each_run(const Label* row, std::ptrdiff_t cols, Body&& body) {
    for (std::ptrdiff_t begin = 0; begin < cols;) {
        const std::ptrdiff_t end = run_end(row, begin, cols);
        const Label label = row[begin];
        if (label < 0) {
            throw std::invalid_argument("labels: expected values >= 0, got " + std::to_string(label));
        }
        if (label != 0) body(begin, end, label);
        begin = end;
    }
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
