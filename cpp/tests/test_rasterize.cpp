#include "nucfast/rasterize.hpp"

#include <cmath>
#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace nucfast {

TEST(rasterize_fills_centres_and_keeps_the_first) {
    // A square, nothing, and a triangle far larger than the image.
    const std::vector<double> vertices = {0.5, 0.5, 1.5, 0.5, 1.5, 1.5, 0.5, 1.5, -50, -50, 90, -50, -50, 90};
    const std::int64_t offsets[] = {0, 4, 4, 7};
    const Label values[] = {7, 8, 9};
    std::vector<Label> out(9);
    rasterize({vertices.data(), 7, 2}, offsets, values, 3, {out.data(), 3, 3});
    CHECK((out ==
           std::vector<Label>{7, 9, 9, 9, 9, 9, 9, 9, 9}));  // half-open: one centre of the square's four
}

TEST(rasterize_refuses_bad_input_before_it_writes) {
    const std::vector<double> vertices = {0, 0, 5, 0, 5, NAN};
    const std::int64_t offsets[] = {0, 3};
    const Label values[] = {1};
    std::vector<Label> out(4);
    bool caught = false;
    try {
        rasterize({vertices.data(), 3, 2}, offsets, values, 1, {out.data(), 2, 2});
    } catch (const std::invalid_argument&) {
        caught = true;
    }
    CHECK(caught);
    CHECK(out == std::vector<Label>(4));
}

TEST(rasterize_of_nothing) {
    const std::int64_t offset = 0;
    rasterize({nullptr, 0, 2}, &offset, nullptr, 0, {nullptr, 0, 0});
}

}  // namespace nucfast
