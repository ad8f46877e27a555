#include "nucfast/properties.hpp"

#include <algorithm>

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 20), cols = input.between(0, 60);
    const auto labels = input.values<Label>(rows * cols, 8);
    constexpr int count = 7;
    std::int64_t area[count];
    std::int32_t bbox[4 * count], first_pixel[2 * count];
    double moments[5 * count], perimeter[count], convex_area[count];
    const auto values = input.values<std::uint8_t>(2 * rows * cols);
    const Cutout<const std::uint8_t> image{values.data(), rows, cols, 2, 2 * cols};
    double sums[2 * count] = {}, sums_alone[2 * count] = {};
    const Plane<const Label> map{labels.data(), rows, cols};
    region_properties(map, count, {area, bbox, first_pixel, moments, perimeter, convex_area},
                      {{image, {sums, count, 2}}});
    for (int i = 0; i < count; ++i) {
        REQUIRE(area[i] == std::count(labels.begin(), labels.end(), i + 1));
        if (area[i] > 0) REQUIRE(convex_area[i] >= static_cast<double>(area[i]) && perimeter[i] >= 0);
    }
    std::int64_t pixels[count] = {};
    intensity_sums(map, count, pixels, {image, {sums_alone, count, 2}});
    REQUIRE(std::equal(pixels, pixels + count, area));
    REQUIRE(std::equal(sums, sums + 2 * count, sums_alone));
    return 0;
}
