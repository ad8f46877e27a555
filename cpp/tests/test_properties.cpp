#include "nucfast/properties.hpp"

#include <cmath>
#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace nucfast {
namespace {

struct Columns {
    explicit Columns(std::size_t count)
        : area(count),
          bbox(4 * count),
          first_pixel(2 * count),
          moments(5 * count),
          perimeter(count),
          convex_area(count) {}

    RegionColumns view() {
        return {area.data(),    bbox.data(),      first_pixel.data(),
                moments.data(), perimeter.data(), convex_area.data()};
    }

    std::vector<std::int64_t> area;
    std::vector<std::int32_t> bbox, first_pixel;
    std::vector<double> moments, perimeter, convex_area;
};

}  // namespace

TEST(properties_of_a_cross_and_an_absent_label) {
    const std::vector<Label> map = {0, 2, 0,  //
                                    2, 2, 2,  //
                                    0, 2, 0};
    Columns columns(2);
    region_properties({map.data(), 3, 3}, 2, columns.view());
    CHECK((columns.area == std::vector<std::int64_t>{0, 5}));
    CHECK((columns.bbox == std::vector<std::int32_t>{0, 0, 0, 0, 0, 0, 3, 3}));
    CHECK((columns.first_pixel == std::vector<std::int32_t>{-1, -1, 0, 1}));
    CHECK(columns.moments[5] == 5 && columns.moments[6] == 0);  // rows 0 1 1 1 2, columns about 1
    CHECK(std::abs(columns.perimeter[1] - 4 * std::sqrt(2.0)) < 1e-12);
    CHECK(columns.convex_area[1] == 7);
}

TEST(properties_hull_spans_rows_without_pixels) {
    const std::vector<Label> map = {1, 0, 0, 0, 0, 0, 1, 0, 1};
    Columns columns(1);
    region_properties({map.data(), 3, 3}, 1, columns.view());
    CHECK(columns.convex_area[0] == 7);
}

TEST(properties_sums_of_intensity) {
    const std::vector<Label> map = {1, 1, 0, 2};
    const std::vector<std::uint8_t> image = {1, 10, 3, 20, 9, 9, 255, 0};
    const Cutout<const std::uint8_t> values{image.data(), 2, 2, 2, 4};
    std::vector<double> sums(4);
    std::vector<std::int64_t> pixels(2);
    intensity_sums({map.data(), 2, 2}, 2, pixels.data(), {values, {sums.data(), 2, 2}});
    CHECK((pixels == std::vector<std::int64_t>{2, 1}));
    CHECK((sums == std::vector<double>{4, 30, 255, 0}));
    Columns columns(2);
    std::vector<double> beside(4);
    region_properties({map.data(), 2, 2}, 2, columns.view(), {{values, {beside.data(), 2, 2}}});
    CHECK(beside == sums);
}

TEST(properties_refuse_labels_beyond_count) {
    const Label map[] = {1, 3};
    Columns columns(2);
    bool caught = false;
    try {
        region_properties({map, 1, 2}, 2, columns.view());
    } catch (const std::invalid_argument&) {
        caught = true;
    }
    CHECK(caught);
    CHECK(columns.area[0] == 0);
    region_properties({nullptr, 0, 5}, 2, columns.view());
    region_properties({nullptr, 5, 0}, 0, columns.view());
}

}  // namespace nucfast
