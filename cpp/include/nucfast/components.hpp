// Connected components, labelled run by run on rows of bits.
//
// Each row becomes words of 64 bits: which pixels are not zero, and where a run of equal value begins. Two
// rows are joined where a run meets one of its value in the row above; those places come out of the words by
// logic on 64 columns at once, and the runs that meet there by counting the bits before them. A run takes
// over the node of the first run it meets and unites it with those of the others; a run that meets none is a
// new node of the union-find forest (He, Chao, Suzuki: A run-based two-scan labeling algorithm, 2008). The
// image is painted from the words at the end, so it is read once and written once, and the rest costs per
// run.
//
// In a mask whose pixels connect by corners too, two rows are taken as one: where either has a pixel, a run
// of columns is connected, whatever row its pixels are in. (The blocks of 2 x 2 of Grana, Borghesani,
// Cucchiara: Optimized block-based connected components labeling with decision trees, 2010, without the
// trees.)
//
// Nodes are counted in raster order of the first pixel of their run and the root of a tree is its first
// node, which makes the numbering independent of the order of the joins and of the number of threads.
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
struct Runs {
    std::vector<Run> runs;
    std::vector<std::ptrdiff_t> row_begin;
};

struct RunComponents : Runs {
    std::vector<Label> labels;  // per run, 1..count in raster order of each component's first pixel
    Label count = 0;
};

// The runs of pixels of at least `lowest`. Throws std::length_error for more than 2^30 columns.
Runs mask_runs(Plane<const std::uint8_t> values, int lowest);

// Components of equal non-zero value without painting them. connectivity: 4 or 8. The result does not depend
// on `threads`. Throws std::invalid_argument for another connectivity, and std::length_error for more than
// 2^30 columns or 2^31 - 1 components; pixels and runs may be more. Linear in pixels and (nearly) in runs.
//
//   T   bool or Label; a bool may hold any byte, non-zero is true
template <typename T>
RunComponents run_components(Plane<const T> image, int connectivity, int threads);

// Paints components of equal non-zero value into `out` (shape of `image`, may be `image` itself) and returns
// their number: 1..n in raster order of the first pixel, 0 where `image` is zero. Throws as run_components,
// before `out` is touched.
//
//   T   bool, std::uint8_t, std::uint16_t or Label
template <typename T>
Label label_components(Plane<const T> image, int connectivity, int threads, Plane<Label> out);

}  // namespace nucfast
