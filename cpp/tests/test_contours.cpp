#include "nucfast/contours.hpp"

#include <limits>
#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace nucfast {

TEST(contours_pinch_vertex_encloses_the_hole) {
    const std::vector<Label> map = {1, 1, 1,  //
                                    1, 0, 1,  //
                                    1, 1, 0};
    const Rings rings = contours({map.data(), 3, 3}, RingStyle::edges, 2);
    CHECK(rings.labels == std::vector<Label>{1});
    CHECK((rings.points == std::vector<float>{0, 0, 3, 0, 3, 2, 2, 2, 2, 3, 0, 3, 0, 0}));
}

TEST(contours_diagonal_parts_stay_apart) {
    const Label big = std::numeric_limits<Label>::max();
    const std::vector<Label> map = {0, big, big, 0};
    const Rings rings = contours({map.data(), 2, 2}, RingStyle::midpoints, 1);
    CHECK((rings.labels == std::vector<Label>{big, big}));
    CHECK((rings.offsets == std::vector<std::int64_t>{0, 5, 10}));
    CHECK(rings.points[0] == 1.5F && rings.points[1] == 0.0F);
}

// Every walk must end and stay inside its memory, whatever the map.
TEST(contours_of_all_small_maps_have_the_right_area) {
    for (int bits = 0; bits < 1 << 16; ++bits) {
        std::vector<Label> map(16);
        for (int i = 0; i < 16; ++i) map[i] = bits >> i & 1;
        const Rings edges = contours({map.data(), 4, 4}, RingStyle::edges, 2);
        const Rings middles = contours({map.data(), 4, 4}, RingStyle::midpoints, 1);
        CHECK(edges.labels == middles.labels);
        const auto area = [](const Rings& rings, std::size_t ring) {
            float twice = 0;
            for (auto i = rings.offsets[ring]; i + 1 < rings.offsets[ring + 1]; ++i) {
                const float* p = rings.points.data() + 2 * i;
                twice += p[0] * p[3] - p[2] * p[1];
            }
            return twice / 2;
        };
        for (std::size_t ring = 0; ring < edges.labels.size(); ++ring) {
            CHECK(area(edges, ring) >= 1);
            CHECK(area(middles, ring) == area(edges, ring) - 0.5F);
        }
    }
}

TEST(contours_refuse_negative_labels) {
    const Label map[] = {0, -1};
    bool caught = false;
    try {
        contours({map, 1, 2}, RingStyle::edges, 2);
    } catch (const std::invalid_argument&) {
        caught = true;
    }
    CHECK(caught);
    CHECK(contours({nullptr, 0, 5}, RingStyle::edges, 2).offsets.size() == 1);
}

}  // namespace nucfast
