// Connected components, labelled run by run.
//
// Each row is cut into runs of equal non-zero value; runs are nodes of a union-find forest. A row is joined
// with the row above it by walking both run lists at once, and the image is painted from the runs at the
// end, so the cost is one vectorised comparison per pixel and the rest per run (He, Chao, Suzuki: A
// run-based two-scan labeling algorithm, 2008). The root of a tree is its first run in raster order, which
// makes the numbering independent of the order of the joins and of the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "nucfast/view.hpp"

namespace nucfast {

// Columns [begin, end) of one row, all of one non-zero value.
struct Run {
    std::int32_t begin = 0;
    std::int32_t end = 0;
};

// Runs in raster order; those of row r are [row_begin[r], row_begin[r + 1]).
struct RunComponents {
    std::vector<Run> runs;
    std::vector<std::ptrdiff_t> row_begin;
    std::vector<Label> labels;  // per run, 1..count in raster order of each component's first pixel
    Label count = 0;
};

// Appends the runs of one row to `runs`. `scratch` is working memory, kept by the caller for the next row.
// T: bool, std::uint8_t, std::uint16_t or Label; a bool may hold any byte, non-zero is true.
template <typename T>
void append_runs(const T* row, std::ptrdiff_t cols, std::vector<std::uint8_t>& scratch,
                 std::vector<Run>& runs);

// Components of equal non-zero value without painting them. connectivity: 4 or 8. The result does not depend
// on `threads`. Throws std::invalid_argument for another connectivity, and std::length_error for 2^31 or
// more columns or runs. Linear in pixels and (nearly) in runs.
template <typename T>
RunComponents run_components(Plane<const T> image, int connectivity, int threads);

// Paints components of equal non-zero value into `out` (shape of `image`, may be `image` itself) and returns
// their number: 1..n in raster order of the first pixel, 0 where `image` is zero. Throws as run_components.
template <typename T>
Label label_components(Plane<const T> image, int connectivity, int threads, Plane<Label> out);

}  // namespace nucfast
