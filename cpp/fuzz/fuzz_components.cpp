#include "nucfast/components.hpp"

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 20), cols = input.between(0, 150);
    const int connectivity = input.between(0, 1) != 0 ? 8 : 4;
    const auto values = input.labels(rows * cols);
    std::vector<Label> once(values.size()), many(values.size());
    const Label count =
        label_components<Label>({values.data(), rows, cols}, connectivity, 1, {once.data(), rows, cols});
    REQUIRE(label_components<Label>({values.data(), rows, cols}, connectivity, 3,
                                    {many.data(), rows, cols}) == count);
    REQUIRE(once == many);
    for (std::size_t i = 0; i < values.size(); ++i)
        REQUIRE((once[i] > 0) == (values[i] != 0) && once[i] <= count);
    return 0;
}
