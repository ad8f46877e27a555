#include "nucfast/split.hpp"

#include <algorithm>
#include <vector>

#include "check.hpp"

namespace nucfast {

namespace {

std::vector<Label> split(const std::vector<std::uint8_t>& height, std::ptrdiff_t cols, int min_rise) {
    const auto rows = static_cast<std::ptrdiff_t>(height.size()) / cols;
    const std::vector<std::uint8_t> mask(height.size(), 1);
    std::vector<Label> nuclei(height.size(), -1);
    const Label count =
        split_instances(Plane<const std::uint8_t>{height.data(), rows, cols},
                        Plane<const bool>{reinterpret_cast<const bool*>(mask.data()), rows, cols}, min_rise,
                        Plane<Label>{nuclei.data(), rows, cols});
    CHECK(count == *std::max_element(nuclei.begin(), nuclei.end()));
    return nuclei;
}

}  // namespace

TEST(split_cuts_at_the_saddle_if_both_hills_rise_enough) {
    const std::vector<std::uint8_t> height{5, 9, 5, 2, 6, 8, 6};
    CHECK((split(height, 7, 6) == std::vector<Label>{1, 1, 1, 2, 2, 2, 2}));
    CHECK(split(height, 7, 7) == std::vector<Label>(7, 1));
}

TEST(split_joins_hills_over_a_lower_one_between_them) {
    CHECK(split({60, 44, 48, 45, 50}, 5, 10) == std::vector<Label>(5, 1));
}

TEST(split_of_a_plateau_is_one_nucleus) {
    CHECK(split(std::vector<std::uint8_t>(600, 7), 30, 1) == std::vector<Label>(600, 1));
}

TEST(split_of_noise_survives_every_rise) {
    std::vector<std::uint8_t> height(64 * 64);
    std::uint32_t state = 1;
    for (auto& pixel : height) {
        state = state * 1664525U + 1013904223U;
        pixel = static_cast<std::uint8_t>(state >> 24);
    }
    Label before = static_cast<Label>(height.size());
    for (const int min_rise : {-5, 0, 1, 50, 200, 256}) {
        const auto nuclei = split(height, 64, min_rise);
        const Label count = *std::max_element(nuclei.begin(), nuclei.end());
        CHECK(count <= before);
        before = count;
    }
    CHECK(before == 1);
}

TEST(split_of_nothing) {
    CHECK(split_instances({nullptr, 0, 4}, {nullptr, 0, 4}, 1, {nullptr, 0, 4}) == 0);
    CHECK(split_instances({nullptr, 4, 0}, {nullptr, 4, 0}, 1, {nullptr, 4, 0}) == 0);
}

}  // namespace nucfast
