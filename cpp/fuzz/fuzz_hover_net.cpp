#include "nucfast/hover_net.hpp"

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 30), cols = input.between(0, 60);
    std::vector<float> probability, hv;
    for (int i = 0; i < rows * cols; ++i) probability.push_back(static_cast<float>(input.byte()) / 255.0F);
    for (int i = 0; i < 2 * rows * cols; ++i) hv.push_back(static_cast<float>(input.byte()) - 128.0F);
    std::vector<Label> labels(probability.size());
    const HoverNetSettings settings{0.5F, 0.4F, input.between(0, 12)};
    const Label count = hover_net_labels({probability.data(), rows, cols}, {hv.data(), rows, cols, 2},
                                         settings, input.between(1, 3), {labels.data(), rows, cols});
    for (std::size_t i = 0; i < labels.size(); ++i) {
        REQUIRE(labels[i] >= 0 && labels[i] <= count && (labels[i] == 0 || probability[i] >= 0.5F));
    }
    return 0;
}
