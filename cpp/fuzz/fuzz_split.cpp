#include "nucfast/split.hpp"

#include <memory>

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 20), cols = input.between(0, 60), min_rise = input.between(-1, 254);
    const auto height = input.values<std::uint8_t>(rows * cols, input.between(1, 256));
    const auto mask = std::make_unique<bool[]>(height.size());
    for (std::size_t i = 0; i < height.size(); ++i) mask[i] = input.byte() % 4 != 0;
    std::vector<Label> nuclei(height.size());
    const Label count = split_instances({height.data(), rows, cols}, {mask.get(), rows, cols}, min_rise,
                                        {nuclei.data(), rows, cols});
    for (std::size_t i = 0; i < nuclei.size(); ++i) {
        REQUIRE(nuclei[i] >= 0 && nuclei[i] <= count && (mask[i] || nuclei[i] == 0));
    }
    const auto probability = input.values<std::uint8_t>(rows * cols, 256);
    const NucleiSettings settings{input.between(1, 255), min_rise, input.between(0, 4) / 4.0,
                                  static_cast<double>(input.between(0, 20)),
                                  static_cast<double>(input.between(0, 5))};
    find_nuclei({probability.data(), rows, cols}, {height.data(), rows, cols}, settings,
                {nuclei.data(), rows, cols});
    for (const Label nucleus : nuclei) REQUIRE(nucleus >= 0);
    return 0;
}
