#include "nucfast/tiles.hpp"

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace nucfast {

TEST(tiles_cut_and_put_back) {
    const std::vector<std::uint8_t> image = {1, 2, 3, 4, 5, 6};  // 2 x 3
    const std::int32_t far = std::numeric_limits<std::int32_t>::min();
    const std::int32_t origins[] = {-1, -1, 0, 1, far, far, 5, 0};
    std::vector<std::uint8_t> tiles(4 * 9);
    tile({image.data(), 2, 3, 1}, origins, 9, {tiles.data(), 4, 3, 1}, 1);
    CHECK((std::vector<std::uint8_t>(tiles.begin(), tiles.begin() + 18) ==
           std::vector<std::uint8_t>{9, 9, 9, 9, 1, 2, 9, 4, 5, 2, 3, 9, 5, 6, 9, 9, 9, 9}));
    CHECK(std::vector<std::uint8_t>(tiles.begin() + 18, tiles.end()) == std::vector<std::uint8_t>(18, 9));

    std::vector<std::uint8_t> out(6);
    stitch<std::uint8_t>({tiles.data(), 4, 3, 1}, origins, 1, {out.data(), 2, 3, 1});
    CHECK((out == std::vector<std::uint8_t>{1, 0, 0, 0, 0, 6}));
}

TEST(tiles_blend_weighs) {
    const std::vector<float> tiles = {10, 20};  // two tiles of one pixel
    const std::int32_t origins[] = {0, 0, 0, 0};
    const float window = 0.25F;
    std::vector<float> out = {-1, -1};
    blend<float>({tiles.data(), 2, 1, 1}, origins, {&window, 1, 1}, {out.data(), 1, 2, 1}, 1);
    CHECK((out == std::vector<float>{15, 0}));
}

TEST(tiles_put_channels_to_pixels) {
    std::vector<std::uint8_t> planes(9 * 2);
    for (std::size_t k = 0; k < planes.size(); ++k) planes[k] = static_cast<std::uint8_t>(k);
    std::vector<std::uint8_t> out(8);
    pixel_shuffle(planes.data(), 2, {out.data(), 2, 4});  // four planes of 1 x 2
    CHECK((out == std::vector<std::uint8_t>{0, 2, 1, 3, 4, 6, 5, 7}));
    out.resize(18);
    pixel_shuffle(planes.data(), 3, {out.data(), 6, 3});  // nine planes of 2 x 1
    CHECK((out == std::vector<std::uint8_t>{0, 2, 4, 6, 8, 10, 12, 14, 16, 1, 3, 5, 7, 9, 11, 13, 15, 17}));
}

TEST(tiles_are_the_same_for_any_threads) {
    std::vector<std::uint8_t> image(50 * 41 * 3);
    for (std::size_t k = 0; k < image.size(); ++k) image[k] = static_cast<std::uint8_t>(k * 7 % 251);
    const std::int32_t origins[] = {-3, 0, -3, 20, 17, 5, 30, -9};
    std::vector<float> window(24 * 24, 0.3F);
    std::vector<std::uint8_t> tiles[2] = {std::vector<std::uint8_t>(4 * 24 * 24 * 3),
                                          std::vector<std::uint8_t>(4 * 24 * 24 * 3)};
    std::vector<float> blended[2] = {std::vector<float>(image.size()), std::vector<float>(image.size())};
    for (const int threads : {1, 3}) {
        auto& batch = tiles[threads / 2];
        tile({image.data(), 50, 41, 3}, origins, 9, {batch.data(), 4, 24, 3}, threads);
        blend<std::uint8_t>({batch.data(), 4, 24, 3}, origins, {window.data(), 24, 24},
                            {blended[threads / 2].data(), 50, 41, 3}, threads);
    }
    CHECK(tiles[0] == tiles[1]);
    CHECK(blended[0] == blended[1]);
}

TEST(tiles_refuse_a_margin_that_leaves_nothing) {
    const std::uint8_t tiles[4] = {};
    const std::int32_t origins[] = {0, 0};
    std::uint8_t out = 7;
    bool caught = false;
    try {
        stitch<std::uint8_t>({tiles, 1, 2, 1}, origins, 1, {&out, 1, 1, 1});
    } catch (const std::invalid_argument&) {
        caught = true;
    }
    CHECK(caught && out == 7);
}

}  // namespace nucfast
