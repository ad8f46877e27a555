#include "nucfast/distance.hpp"

#include <cmath>

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 20), cols = input.between(0, 150);
    const auto values = input.labels(rows * cols);
    std::vector<float> once(values.size()), many(values.size());
    distance_transform<Label>({values.data(), rows, cols}, 1, {once.data(), rows, cols});
    distance_transform<Label>({values.data(), rows, cols}, 3, {many.data(), rows, cols});
    REQUIRE(once == many);
    for (std::size_t i = 0; i < values.size(); ++i) REQUIRE(values[i] == 0 ? once[i] == 0 : once[i] >= 1);
    return 0;
}
