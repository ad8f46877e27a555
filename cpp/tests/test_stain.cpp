#include "nucfast/stain.hpp"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace nucfast {
namespace {

constexpr std::ptrdiff_t rows = 150;
constexpr std::ptrdiff_t cols = 100;

// Purple and pink of many strengths, enough for several blocks of work.
std::vector<std::uint8_t> stained() {
    std::vector<std::uint8_t> image;
    for (int i = 0; i < rows * cols; ++i) {
        const int light = 60 + i * 37 % 90;
        const bool purple = i % 3 == 0;
        image.push_back(static_cast<std::uint8_t>(purple ? light : std::min(205, light + 60)));
        image.push_back(static_cast<std::uint8_t>(light - 20));
        image.push_back(static_cast<std::uint8_t>(purple ? light + 50 : light + 10));
    }
    return image;
}

}  // namespace

TEST(stain_is_the_same_for_any_threads_and_instruction_set) {
    const auto image = stained();
    set_isa(Isa::baseline);
    const Image<const std::uint8_t> view{image.data(), rows, cols, 3};
    const Stains plain = fit_stains(view, 1);
    std::vector<std::uint8_t> expected(image.size());
    const Stains target = {{{0.5, 0.7, 0.4}, {0.2, 0.8, 0.5}}, {2, 1}};
    normalize_stain(view, plain, target, {expected.data(), rows, cols, 3}, 1);
    testing::for_each_isa([&] {
        const Stains found = fit_stains(view, 3);
        CHECK(std::equal(plain.vectors[0], plain.vectors[0] + 6, found.vectors[0]));
        CHECK(std::equal(plain.strengths, plain.strengths + 2, found.strengths));
        auto out = image;  // in place
        normalize_stain({out.data(), rows, cols, 3}, found, target, {out.data(), rows, cols, 3}, 3);
        CHECK(out == expected);
    });
    CHECK(plain.vectors[0][0] > plain.vectors[1][0]);
}

TEST(stain_refuses_white) {
    const std::vector<std::uint8_t> image(300, 255);
    bool caught = false;
    try {
        fit_stains({image.data(), 10, 10, 3}, 1);
    } catch (const std::invalid_argument&) {
        caught = true;
    }
    CHECK(caught);
}

}  // namespace nucfast
