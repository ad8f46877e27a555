#include "nucfast/watershed.hpp"

#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace nucfast {

namespace {

template <typename T>
std::vector<Label> flood(const std::vector<T>& elevation, const std::vector<std::uint8_t>& mask,
                         std::vector<Label> labels, std::ptrdiff_t cols) {
    const auto rows = static_cast<std::ptrdiff_t>(labels.size()) / cols;
    watershed(Plane<const T>{elevation.data(), rows, cols},
              Plane<const bool>{reinterpret_cast<const bool*>(mask.data()), rows, cols},
              Plane<const Label>{labels.data(), rows, cols}, 2, Plane<Label>{labels.data(), rows, cols});
    return labels;
}

}  // namespace

TEST(watershed_floods_low_pixels_first) {
    const std::vector<std::uint8_t> elevation{0, 1, 2, 9, 3, 0};
    CHECK((flood(elevation, std::vector<std::uint8_t>(6, 1), {1, 0, 0, 0, 0, 2}, 6) ==
           std::vector<Label>{1, 1, 1, 1, 2, 2}));
}

TEST(watershed_uses_all_levels_of_16_bits) {
    const std::vector<std::uint16_t> elevation{65535, 65534, 4096, 63, 64, 0};
    CHECK((flood(elevation, std::vector<std::uint8_t>(6, 1), {5, 0, 0, 0, 0, 3}, 1) ==
           std::vector<Label>{5, 3, 3, 3, 3, 3}));
}

TEST(watershed_stays_in_the_mask) {
    const std::vector<std::uint8_t> elevation(9, 0);
    const std::vector<std::uint8_t> mask{1, 1, 0,  //
                                         0, 0, 0,  //
                                         1, 0, 1};
    CHECK((flood(elevation, mask, {4, 0, 9, 0, 0, 0, 0, 0, 7}, 3) ==
           std::vector<Label>{4, 4, 0, 0, 0, 0, 0, 0, 7}));
}

TEST(watershed_refuses_negative_markers) {
    bool caught = false;
    try {
        flood(std::vector<std::uint8_t>{0}, {1}, {-1}, 1);
    } catch (const std::invalid_argument&) {
        caught = true;
    }
    CHECK(caught);
}

}  // namespace nucfast
