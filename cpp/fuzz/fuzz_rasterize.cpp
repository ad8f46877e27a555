#include "nucfast/rasterize.hpp"

#include <algorithm>
#include <stdexcept>

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 20), cols = input.between(0, 60);
    const int count = input.between(0, 5);
    const auto offsets = input.offsets(count, 8);
    std::vector<double> vertices;
    for (std::int64_t i = 0; i < 2 * offsets.back(); ++i) {
        const double near = input.between(-20, 200) / 4.0;  // on centres and corners of pixels, too
        const int kind = input.byte() % 32;
        vertices.push_back(kind == 0   ? 1e15
                           : kind == 1 ? -1e15
                           : kind == 2 ? std::numeric_limits<double>::infinity()
                           : kind == 3 ? near * 1.0000000001
                                       : near);
    }
    std::vector<Label> values;
    for (int i = 0; i < count; ++i) values.push_back(input.between(-1, 100));
    const auto before = input.values<Label>(rows * cols, 2);
    auto labels = before;
    const bool wrong = std::any_of(vertices.begin(), vertices.end(), [](double v) { return v > 1e15; }) ||
                       std::any_of(values.begin(), values.end(), [](Label v) { return v < 0; });
    bool refused = false;
    try {
        rasterize({vertices.data(), offsets.back(), 2}, offsets.data(), values.data(), count,
                  {labels.data(), rows, cols});
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    REQUIRE(refused == wrong);
    for (std::size_t i = 0; i < labels.size(); ++i) {
        if (refused || before[i] != 0) {
            REQUIRE(labels[i] == before[i]);
        } else {
            REQUIRE(labels[i] == 0 || std::count(values.begin(), values.end(), labels[i]) > 0);
        }
    }
    return 0;
}
