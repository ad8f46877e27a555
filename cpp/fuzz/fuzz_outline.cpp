#include "input.hpp"
#include "nucfast/outline.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(1, 12), cols = input.between(1, 12);
    const int count = input.between(1, 4);
    const auto offsets = input.offsets(count, 6);
    std::vector<double> vertices;
    for (std::int64_t i = 0; i < 2 * offsets.back(); ++i) vertices.push_back(input.between(-40, 200) / 7.0);
    const std::vector<std::uint8_t> colors(static_cast<std::size_t>(count) * 3, 200);
    std::vector<std::uint8_t> picture(static_cast<std::size_t>(rows * cols) * 3, 100);
    draw_outlines({vertices.data(), offsets.back(), 2}, offsets.data(), {colors.data(), count, 3},
                  input.between(0, 30) / 7.0, {picture.data(), rows, cols, 3});
    for (const std::uint8_t value : picture) REQUIRE(value >= 100 && value <= 200);
    return 0;
}
