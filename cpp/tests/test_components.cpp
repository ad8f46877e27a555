#include "nucfast/components.hpp"

#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace nucfast {

namespace {

template <typename T>
std::vector<Label> labels_of(const std::vector<T>& image, std::ptrdiff_t cols, int connectivity,
                             int threads = 1) {
    const auto rows = static_cast<std::ptrdiff_t>(image.size()) / cols;
    std::vector<Label> out(image.size(), -1);
    label_components(Plane<const T>{image.data(), rows, cols}, connectivity, threads,
                     Plane<Label>{out.data(), rows, cols});
    return out;
}

}  // namespace

TEST(components_connect_by_edges_or_corners) {
    const std::vector<std::uint8_t> image{1, 0, 1,  //
                                          0, 1, 0,  //
                                          0, 1, 1};
    CHECK((labels_of(image, 3, 8) == std::vector<Label>{1, 0, 1, 0, 1, 0, 0, 1, 1}));
    CHECK((labels_of(image, 3, 4) == std::vector<Label>{1, 0, 2, 0, 3, 0, 0, 3, 3}));
}

TEST(components_tell_values_apart) {
    const std::vector<Label> image{7, 7, 3,  //
                                   0, 3, 3,  //
                                   7, 0, 0};
    CHECK((labels_of(image, 3, 8) == std::vector<Label>{1, 1, 2, 0, 2, 2, 3, 0, 0}));
}

TEST(components_do_not_depend_on_threads) {
    const std::ptrdiff_t cols = 37;
    std::vector<std::uint16_t> image(41 * static_cast<std::size_t>(cols));
    std::uint32_t state = 1;
    for (auto& pixel : image) {
        state = state * 1664525U + 1013904223U;
        pixel = static_cast<std::uint16_t>((state >> 24) % 3);
    }
    for (const int connectivity : {4, 8}) {
        const auto expected = labels_of(image, cols, connectivity);
        for (const int threads : {2, 5, 64}) {
            CHECK(labels_of(image, cols, connectivity, threads) == expected);
        }
    }
}

namespace {

template <typename T>
void check_sets_agree() {
    const std::ptrdiff_t cols = 141;
    std::vector<T> image(67 * static_cast<std::size_t>(cols));
    std::uint32_t state = 7;
    for (const std::uint32_t levels : {2U, 3U, 6U}) {
        for (auto& pixel : image) {
            state = state * 1664525U + 1013904223U;
            pixel = static_cast<T>((state >> 24) % levels);
        }
        for (const int connectivity : {4, 8}) {
            std::vector<std::vector<Label>> found;
            testing::for_each_isa([&] {
                found.push_back(labels_of(image, cols, connectivity));
                found.push_back(labels_of(image, cols, connectivity, 3));
            });
            for (const auto& labels : found) CHECK(labels == found.front());
        }
    }
}

}  // namespace

TEST(components_do_not_depend_on_the_instruction_set) {
    check_sets_agree<std::uint8_t>();
    check_sets_agree<std::uint16_t>();
    check_sets_agree<Label>();
}

TEST(components_of_a_mask_are_those_of_its_values) {
    const std::ptrdiff_t cols = 131;
    std::vector<std::uint8_t> values(66 * static_cast<std::size_t>(cols));
    std::uint32_t state = 9;
    for (auto& value : values) {
        state = state * 1664525U + 1013904223U;
        value = static_cast<std::uint8_t>(state >> 24 > 130);
    }
    const auto rows = static_cast<std::ptrdiff_t>(values.size()) / cols;
    const auto* mask = reinterpret_cast<const bool*>(values.data());
    testing::for_each_isa([&] {
        for (const int connectivity : {4, 8}) {
            for (const int threads : {1, 2, 7}) {
                std::vector<Label> out(values.size(), -1);
                label_components(Plane<const bool>{mask, rows, cols}, connectivity, threads,
                                 Plane<Label>{out.data(), rows, cols});
                CHECK(out == labels_of(values, cols, connectivity));
            }
        }
    });
}

TEST(run_components_give_the_runs_that_are_painted) {
    const std::vector<Label> image{5, 5, 3, 0,  //
                                   0, 3, 3, 5};
    const RunComponents found = run_components(Plane<const Label>{image.data(), 2, 4}, 4, 2);
    CHECK(found.count == 3);
    CHECK((found.row_begin == std::vector<std::ptrdiff_t>{0, 2, 4}));
    CHECK((found.labels == std::vector<Label>{1, 2, 2, 3}));
    const std::vector<std::int32_t> bounds{0, 2, 2, 3, 1, 3, 3, 4};
    for (std::size_t i = 0; i < found.runs.size(); ++i) {
        CHECK(found.runs[i].begin == bounds[2 * i]);
        CHECK(found.runs[i].end == bounds[2 * i + 1]);
    }
}

TEST(components_of_nothing) {
    CHECK(label_components(Plane<const bool>{nullptr, 0, 5}, 8, 2, Plane<Label>{nullptr, 0, 5}) == 0);
    CHECK(label_components(Plane<const bool>{nullptr, 5, 0}, 8, 2, Plane<Label>{nullptr, 5, 0}) == 0);
}

TEST(components_refuse_other_connectivities) {
    bool caught = false;
    try {
        labels_of(std::vector<std::uint8_t>{1}, 1, 6);
    } catch (const std::invalid_argument&) {
        caught = true;
    }
    CHECK(caught);
}

}  // namespace nucfast
