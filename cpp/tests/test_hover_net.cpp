#include "nucfast/hover_net.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace nucfast {

namespace {

constexpr std::ptrdiff_t kRows = 24;
constexpr std::ptrdiff_t kCols = 48;

// Two square nuclei side by side, without a gap.
std::vector<float> two_nuclei() {
    std::vector<float> hv;
    for (std::ptrdiff_t r = 0; r < kRows; ++r) {
        for (std::ptrdiff_t c = 0; c < kCols; ++c) {
            hv.push_back((static_cast<float>(c % kRows) - 11.5F) / 11.5F);
            hv.push_back((static_cast<float>(r) - 11.5F) / 11.5F);
        }
    }
    return hv;
}

// Fills `labels`, which has the size of the maps.
Label find(const std::vector<float>& probability, const std::vector<float>& hv, int threads,
           std::vector<Label>& labels) {
    return hover_net_labels({probability.data(), kRows, kCols}, {hv.data(), kRows, kCols, 2}, {}, threads,
                            {labels.data(), kRows, kCols});
}

}  // namespace

TEST(hover_net_parts_nuclei_where_the_map_falls) {
    const std::vector<float> probability(static_cast<std::size_t>(kRows * kCols), 0.9F);
    std::vector<Label> labels(static_cast<std::size_t>(kRows * kCols), -1);
    std::vector<Label> threaded = labels;
    CHECK(find(probability, two_nuclei(), 1, labels) == 2);
    CHECK(labels.front() == 1 && labels.back() == 2);
    CHECK(labels[12 * kCols + 20] == 1 && labels[12 * kCols + 27] == 2);
    CHECK(find(probability, two_nuclei(), 3, threaded) == 2);
    CHECK(labels == threaded);
}

TEST(hover_net_of_background_and_of_constant_maps_is_empty) {
    std::vector<Label> labels(static_cast<std::size_t>(kRows * kCols), -1);
    const std::vector<float> nothing(static_cast<std::size_t>(kRows * kCols), 0.1F);
    CHECK(find(nothing, two_nuclei(), 1, labels) == 0);
    CHECK(std::count(labels.begin(), labels.end(), 0) == kRows * kCols);
    const std::vector<float> probability(static_cast<std::size_t>(kRows * kCols), 0.9F);
    CHECK(find(probability, std::vector<float>(2 * probability.size(), 0.3F), 1, labels) == 0);
}

TEST(hover_net_refuses_maps_that_are_not_finite) {
    const std::vector<float> probability(static_cast<std::size_t>(kRows * kCols), 0.9F);
    std::vector<float> hv = two_nuclei();
    hv[77] = std::numeric_limits<float>::quiet_NaN();
    std::vector<Label> labels(static_cast<std::size_t>(kRows * kCols), -1);
    bool caught = false;
    try {
        find(probability, hv, 2, labels);
    } catch (const std::invalid_argument&) {
        caught = true;
    }
    CHECK(caught);
    CHECK(std::count(labels.begin(), labels.end(), -1) == kRows * kCols);
}

}  // namespace nucfast
