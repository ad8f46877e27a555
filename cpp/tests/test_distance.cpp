#include "nucfast/distance.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.hpp"

namespace nucfast {

namespace {

std::vector<float> distances_of(const std::vector<Label>& image, std::ptrdiff_t cols, int threads = 1) {
    const auto rows = static_cast<std::ptrdiff_t>(image.size()) / cols;
    std::vector<float> out(image.size(), -1);
    distance_transform(Plane<const Label>{image.data(), rows, cols}, threads,
                       Plane<float>{out.data(), rows, cols});
    return out;
}

}  // namespace

TEST(distance_is_exact_inside_and_beyond_the_search_reach) {
    const std::ptrdiff_t rows = 190;
    const std::ptrdiff_t cols = 351;
    std::vector<Label> image(static_cast<std::size_t>(rows * cols), 1);
    const std::vector<std::ptrdiff_t> others{3 * cols + 2, 140 * cols + 349, 188 * cols + 20};
    image[others[0]] = 0;
    image[others[1]] = 2;
    image[others[2]] = 0;
    for (const int threads : {1, 3}) {
        const auto actual = distances_of(image, cols, threads);
        for (std::ptrdiff_t i = 0; i < rows * cols; ++i) {
            if (image[i] != 1) continue;
            double nearest = std::numeric_limits<double>::infinity();
            for (const auto j : others) {
                nearest = std::min(nearest, std::hypot(i / cols - j / cols, i % cols - j % cols));
            }
            CHECK(std::abs(actual[i] - nearest) < 1e-4);
        }
    }
}

TEST(distance_does_not_depend_on_the_instruction_set_or_threads) {
    const std::ptrdiff_t cols = 203;
    std::vector<Label> image(171 * static_cast<std::size_t>(cols));
    std::uint32_t state = 3;
    for (const std::uint32_t one_in : {2U, 40U, 20000U}) {
        for (auto& pixel : image) {
            state = state * 1664525U + 1013904223U;
            pixel = (state >> 8) % one_in == 0 ? static_cast<Label>(state >> 30) : 2;
        }
        std::vector<std::vector<float>> found;
        testing::for_each_isa([&] {
            found.push_back(distances_of(image, cols));
            found.push_back(distances_of(image, cols, 3));
        });
        for (const auto& distances : found) CHECK(distances == found.front());
    }
}

TEST(distance_ends_at_other_labels_not_at_the_border) {
    const std::vector<Label> image{1, 1, 1, 2, 2, 0};
    CHECK((distances_of(image, 6) == std::vector<float>{3, 2, 1, 1, 1, 0}));
}

TEST(distance_without_background_is_infinite) {
    for (const float d : distances_of(std::vector<Label>(12, 4), 3, 2)) CHECK(std::isinf(d));
}

}  // namespace nucfast
