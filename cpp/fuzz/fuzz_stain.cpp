#include "nucfast/stain.hpp"

#include <algorithm>
#include <stdexcept>

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 20), cols = input.between(0, 40), dark = input.between(1, 256);
    auto image = input.values<std::uint8_t>(3 * rows * cols, dark);
    Stains stains;
    try {
        stains = fit_stains({image.data(), rows, cols, 3}, 1);
    } catch (const std::invalid_argument&) {
        return 0;  // it shows no two stains
    }
    const Stains same = fit_stains({image.data(), rows, cols, 3}, 3);
    REQUIRE(std::equal(stains.strengths, stains.strengths + 2, same.strengths));
    for (int i = 0; i < 2; ++i) {
        REQUIRE(std::equal(stains.vectors[i], stains.vectors[i] + 3, same.vectors[i]));
    }
    std::vector<std::uint8_t> out(image.size());
    normalize_stain({image.data(), rows, cols, 3}, stains, same, {out.data(), rows, cols, 3}, 3);
    normalize_stain({image.data(), rows, cols, 3}, stains, same, {image.data(), rows, cols, 3}, 1);
    REQUIRE(out == image);
    return 0;
}
