#include "nucfast/overlap.hpp"

#include <cmath>
#include <limits>
#include <stdexcept>

#include "check.hpp"

namespace nucfast {

using Ids = std::vector<std::int64_t>;

TEST(overlaps_counts_pairs_areas_and_centroids) {
    constexpr Label top = std::numeric_limits<Label>::max();
    const std::vector<Label> truth = {7, 7, 0, 0,  //
                                      7, 7, 0, 3};
    const std::vector<Label> pred = {0, top, top, 0,  //
                                     0, top, 2,   2};
    const auto found = overlaps({truth.data(), 2, 4}, {pred.data(), 2, 4}, 2);
    CHECK((found.true_id == Ids{3, 7}));
    CHECK((found.pred_id == Ids{2, top}));
    CHECK((found.count == Ids{1, 2}));
    CHECK((found.iou == std::vector<double>{1.0 / 2, 2.0 / 5}));
    CHECK((found.truth.ids == Ids{3, 7}));
    CHECK((found.truth.areas == Ids{1, 4}));
    CHECK((found.truth.centroids == std::vector<double>{1, 3, 0.5, 0.5}));
    CHECK((found.pred.ids == Ids{2, top}));
    CHECK((found.pred.areas == Ids{2, 3}));
}

TEST(overlaps_survives_more_pairs_than_the_first_table_holds) {
    constexpr Label side = 200;
    std::vector<Label> truth, pred;
    for (Label i = 0; i < side * side; ++i) {
        truth.push_back(i + 1);
        pred.push_back(i % 2 ? i + 1 : 0);
    }
    const auto found = overlaps({truth.data(), side, side}, {pred.data(), side, side}, 3);
    CHECK(found.truth.ids.size() == side * side);
    CHECK(found.count == Ids(side * side / 2, 1));
}

TEST(overlaps_of_nothing_is_empty) {
    CHECK(overlaps({nullptr, 0, 5}, {nullptr, 0, 5}, 1).truth.ids.empty());
    CHECK(overlaps({nullptr, 5, 0}, {nullptr, 5, 0}, 1).pred.ids.empty());
}

TEST(overlaps_refuses_negative_ids) {
    const std::vector<Label> fine = {1}, negative = {-1};
    bool caught = false;
    try {
        overlaps({fine.data(), 1, 1}, {negative.data(), 1, 1}, 1);
    } catch (const std::invalid_argument&) {
        caught = true;
    }
    CHECK(caught);
}

TEST(match_pairs_gives_up_a_good_pair_for_two) {
    const Ids truth = {1, 1, 2}, pred = {5, 6, 5};
    const std::vector<double> weight = {0.9, 0.6, 0.7};
    CHECK((match_pairs(truth.data(), pred.data(), weight.data(), 3) == Ids{1, 2}));
    const std::vector<double> greedy = {0.9, 0.1, 0.7};
    CHECK((match_pairs(truth.data(), pred.data(), greedy.data(), 3) == Ids{0}));
    CHECK(match_pairs(nullptr, nullptr, nullptr, 0).empty());
}

TEST(match_points_leaves_the_odd_one_out) {
    const std::vector<double> few = {0, 0, 10, 10}, many = {50, 50, 10, 11, 1, 0};
    CHECK((match_points({few.data(), 2, 2}, {many.data(), 3, 2}) == Ids{2, 1}));
    CHECK((match_points({many.data(), 3, 2}, {few.data(), 2, 2}) == Ids{-1, 1, 0}));
    CHECK((match_points({few.data(), 2, 2}, {nullptr, 0, 2}) == Ids{-1, -1}));
}

}  // namespace nucfast
