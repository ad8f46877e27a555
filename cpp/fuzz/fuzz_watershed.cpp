#include "nucfast/watershed.hpp"

#include <memory>

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 20), cols = input.between(0, 60);
    const auto elevation = input.values<std::uint8_t>(rows * cols, input.between(1, 256));
    auto labels = input.labels(rows * cols);
    const auto mask = std::make_unique<bool[]>(labels.size());
    for (std::size_t i = 0; i < labels.size(); ++i) mask[i] = input.byte() % 4 != 0;
    const auto markers = labels;
    watershed<std::uint8_t>({elevation.data(), rows, cols}, {mask.get(), rows, cols},
                            {markers.data(), rows, cols}, input.between(1, 3), {labels.data(), rows, cols});
    for (std::size_t i = 0; i < labels.size(); ++i) {
        REQUIRE(mask[i] || labels[i] == 0);
        REQUIRE(!mask[i] || markers[i] == 0 || labels[i] == markers[i]);
    }
    return 0;
}
