#include "nucfast/outline.hpp"

#include <limits>
#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace nucfast {
namespace {

// One ring in (100, 100, 100) on black, its first channel.
std::vector<int> drawn(std::vector<double> points, double width, int rows, int cols) {
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(rows * cols * 3));
    const auto count = static_cast<std::ptrdiff_t>(points.size() / 2);
    const std::int64_t offsets[] = {0, count};
    const std::uint8_t color[] = {100, 100, 100};
    draw_outlines({points.data(), count, 2}, offsets, {color, 1, 3}, width, {pixels.data(), rows, cols, 3});
    std::vector<int> first;
    for (std::size_t i = 0; i < pixels.size(); i += 3) first.push_back(pixels[i]);
    return first;
}

bool refused(std::vector<double> points, std::int64_t end, double width) {
    std::uint8_t pixel[] = {9, 9, 9};
    const std::int64_t offsets[] = {0, end};
    const std::uint8_t color[] = {100, 100, 100};
    try {
        draw_outlines({points.data(), static_cast<std::ptrdiff_t>(points.size() / 2), 2}, offsets,
                      {color, 1, 3}, width, {pixel, 1, 1, 3});
    } catch (const std::invalid_argument&) {
        return pixel[0] == 9 && pixel[1] == 9 && pixel[2] == 9;
    }
    return false;
}

}  // namespace

TEST(outline_fills_by_halves_of_pixels) {
    CHECK((drawn({1, 1, 3, 1, 3, 2, 1, 2}, 0, 3, 4) == std::vector<int>{0, 0, 0, 0,      //
                                                                        0, 100, 100, 0,  //
                                                                        0, 0, 0, 0}));
    CHECK((drawn({0.5, 0, 1.5, 0, 1.5, 1, 0.5, 1}, 0, 1, 2) == std::vector<int>{50, 50}));
}

TEST(outline_closes_rings_and_takes_closed_ones) {
    const std::vector<double> open = {1, 1, 7, 2, 4, 6};
    const std::vector<double> closed = {1, 1, 7, 2, 4, 6, 1, 1};
    for (const double width : {0.0, 1.0, 2.5}) CHECK(drawn(open, width, 8, 8) == drawn(closed, width, 8, 8));
}

TEST(outline_is_as_wide_as_asked) {
    CHECK((drawn({0, 2, 4, 2}, 2, 4, 4) == std::vector<int>{0, 0, 0, 0,          //
                                                            100, 100, 100, 100,  //
                                                            100, 100, 100, 100,  //
                                                            0, 0, 0, 0}));
}

TEST(outline_outside_the_picture_is_cut) {
    CHECK((drawn({-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9}, 0, 1, 2) == std::vector<int>{100, 100}));
    CHECK((drawn({-5, -5, -3, -5, -3, -3}, 1, 1, 2) == std::vector<int>{0, 0}));
    CHECK((drawn({50, 50}, 1, 1, 2) == std::vector<int>{0, 0}));
    CHECK((drawn({}, 1, 1, 2) == std::vector<int>{0, 0}));
}

TEST(outline_refuses_what_it_cannot_draw) {
    CHECK(refused({0, 0, 1, 1}, 3, 1));
    CHECK(refused({0, 0, 1, 1}, 1, 1));
    CHECK(refused({0, 2e9}, 1, 1));
    CHECK(refused({0, std::numeric_limits<double>::quiet_NaN()}, 1, 1));
    CHECK(refused({0, 0}, 1, -1));
    CHECK(refused({0, 0}, 1, 1001));
}

}  // namespace nucfast
