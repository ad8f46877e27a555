#include "nucfast/overlap.hpp"

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 20), cols = input.between(0, 60);
    const auto truth = input.labels(rows * cols);
    const auto pred = input.labels(rows * cols);
    const Overlaps found =
        overlaps({truth.data(), rows, cols}, {pred.data(), rows, cols}, input.between(1, 3));
    for (const double iou : found.iou) REQUIRE(iou > 0 && iou <= 1);
    const auto picked = match_pairs(found.true_id.data(), found.pred_id.data(), found.iou.data(),
                                    static_cast<std::ptrdiff_t>(found.iou.size()));
    REQUIRE(picked.size() <= found.truth.ids.size() && picked.size() <= found.pred.ids.size());
    return 0;
}
