#include "nucfast/contours.hpp"

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 20), cols = input.between(0, 60);
    const auto labels = input.labels(rows * cols);
    for (const RingStyle style : {RingStyle::edges, RingStyle::midpoints}) {
        const Rings rings = contours({labels.data(), rows, cols}, style, input.between(1, 3));
        REQUIRE(rings.offsets.size() == rings.labels.size() + 1);
        for (std::size_t i = 0; i < rings.labels.size(); ++i) {
            const auto begin = 2 * rings.offsets[i], end = 2 * rings.offsets[i + 1];
            REQUIRE(end - begin >= 10);  // closed: four corners and the first again
            REQUIRE(rings.points[begin] == rings.points[end - 2] &&
                    rings.points[begin + 1] == rings.points[end - 1]);
        }
    }
    return 0;
}
