// What two label maps of one image share, and which nucleus of one is which of the other.
//
// Counting: both maps are walked together, row by row, by runs of equal (true, pred) pairs; run borders are
// found by a branch-free comparison of neighbours that compilers vectorise. Each run is added to its pair,
// which most often is the one that the row above has in these columns, and else is found in an
// open-addressing hash table. So cost and memory follow pixels + runs and pairs: there is no dense (true x
// pred) matrix, and ids need not be contiguous. Threads take strips of rows; their sums are whole numbers, so
// adding them up is exact.
//
// Matching: minimum-cost assignment by successive shortest augmenting paths with dual potentials (Jonker and
// Volgenant, Computing 38, 1987; the sparse form with a heap: Carraresi and Sodini, EJOR 23, 1986). A path
// stays among the overlapping neighbours of its start, so for label maps the cost is near linear.
#pragma once

#include <cstdint>
#include <vector>

#include "nucfast/view.hpp"

namespace nucfast {

// The nuclei of one map, by ascending id.
struct LabelTable {
    std::vector<std::int64_t> ids;    // (N) ids present, without 0
    std::vector<std::int64_t> areas;  // (N) pixels
    std::vector<double> centroids;    // (2 N) row, col: mean of the pixel indices
};

// Pairs of nuclei that share at least one pixel, by ascending (true id, pred id).
struct Overlaps {
    std::vector<std::int64_t> true_id;
    std::vector<std::int64_t> pred_id;
    std::vector<std::int64_t> count;  // pixels shared
    std::vector<double> iou;          // count / (true area + pred area - count)
    LabelTable truth;
    LabelTable pred;
};

// The caller guarantees equal shapes. Ids are 0 (background) to 2^31 - 1. The result does not
// depend on `threads`. Throws std::invalid_argument if an id is negative.
Overlaps overlaps(Plane<const Label> truth, Plane<const Label> pred, int threads);

// Picks pairs so that no true id and no pred id is used twice and the sum of `weight` is largest.
//
//   true_id, pred_id, weight  (count)  the pairs that may be picked, each pair once
//
// Returns the indices of the picked pairs, ascending. Throws std::invalid_argument unless all weights are
// finite and positive.
std::vector<std::int64_t> match_pairs(const std::int64_t* true_id, const std::int64_t* pred_id,
                                      const double* weight, std::ptrdiff_t count);

// What the instance scores of one image are made of.
struct InstanceSums {
    std::int64_t good = 0;  // pairs with IoU > 0.5: no nucleus is in two
    double good_iou = 0;    // the sum of their IoUs
    // Of the matching with IoU >= 0.5 that has the most pairs and then the largest sum of IoUs:
    std::vector<std::int64_t> matched;  // its pairs by threshold
    double matched_iou = 0;             // the sum of its IoUs
    // Every overlapped true nucleus with the predicted one of highest IoU (ties: the larger overlap, then the
    // smaller id), then pairs of the one-to-one matching with the largest sum of IoUs: pixels shared, and
    // pixels of the unions and of all nuclei left over.
    std::int64_t best_shared = 0;
    std::int64_t best_union = 0;
    std::int64_t one_to_one_shared = 0;
    std::int64_t one_to_one_union = 0;
};

// From the pairs of `overlaps` and the areas of all nuclei; `thresholds` are at least 0.5.
struct ScoredPairs {
    const std::int64_t* true_id;
    const std::int64_t* pred_id;
    const std::int64_t* shared;
    const double* iou;
    std::ptrdiff_t count;
};
struct Areas {
    const std::int64_t* ids;  // ascending
    const std::int64_t* areas;
    std::ptrdiff_t count;
};
InstanceSums instance_sums(const ScoredPairs& pairs, const Areas& truth, const Areas& pred,
                           const std::vector<double>& thresholds);

// Pairs points of two sets one to one so that every point of the smaller set has a partner and the sum of the
// distances is smallest. O(n^2) memory is avoided: distances are computed when they are needed.
//
//   truth  (true_count, 2), pred  (pred_count, 2)  finite coordinates
//
// Returns, for every true point, the index of its partner, or -1. Throws std::invalid_argument if a
// coordinate is not finite.
std::vector<std::int64_t> match_points(Plane<const double> truth, Plane<const double> pred);

}  // namespace nucfast
