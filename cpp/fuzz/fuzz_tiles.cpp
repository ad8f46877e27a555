#include "nucfast/tiles.hpp"

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int rows = input.between(0, 30), cols = input.between(0, 30), channels = input.between(1, 4);
    const int count = input.between(0, 5), size_px = input.between(1, 12), margin_px = input.between(0, 5);
    std::vector<std::int32_t> origins;
    for (int i = 0; i < 2 * count; ++i) {
        const int kind = input.byte() % 16;
        const std::int32_t near = input.between(-15, 35);
        origins.push_back(kind == 0   ? std::numeric_limits<std::int32_t>::min()
                          : kind == 1 ? std::numeric_limits<std::int32_t>::max()
                                      : near);
    }
    const auto window = input.values<float>(size_px * size_px, 3);
    const auto image = input.values<std::uint8_t>(rows * cols * channels);
    const auto pixels = static_cast<std::size_t>(count * size_px * size_px * channels);
    std::vector<std::uint8_t> tiles(pixels), same(pixels);
    tile({image.data(), rows, cols, channels}, origins.data(), 9, {tiles.data(), count, size_px, channels},
         1);
    tile({image.data(), rows, cols, channels}, origins.data(), 9, {same.data(), count, size_px, channels}, 3);
    REQUIRE(tiles == same);

    // Equal pixels stay equal: what was cut and is put back is the image, where it is covered.
    auto back = image;
    if (2 * margin_px < size_px) {
        stitch<std::uint8_t>({tiles.data(), count, size_px, channels}, origins.data(), margin_px,
                             {back.data(), rows, cols, channels});
    }
    REQUIRE(back == image);
    std::vector<float> blended(image.size(), -1), again(image.size(), -1);
    blend<std::uint8_t>({tiles.data(), count, size_px, channels}, origins.data(),
                        {window.data(), size_px, size_px}, {blended.data(), rows, cols, channels}, 1);
    blend<std::uint8_t>({tiles.data(), count, size_px, channels}, origins.data(),
                        {window.data(), size_px, size_px}, {again.data(), rows, cols, channels}, 3);
    REQUIRE(blended == again);
    for (const float value : blended) REQUIRE(value >= 0 && value < 255.001F);

    // Each pixel of the shuffled image is that of its plane.
    const int block = input.between(1, 4);
    const auto planes = input.values<std::uint8_t>(block * block * rows * cols);
    std::vector<std::uint8_t> shuffled(planes.size(), 1);
    pixel_shuffle(planes.data(), block, {shuffled.data(), rows * block, cols * block});
    for (int r = 0; r < rows * block; ++r) {
        for (int c = 0; c < cols * block; ++c) {
            const int plane = r % block * block + c % block;
            const int at = (plane * rows + r / block) * cols + c / block;
            REQUIRE(shuffled[static_cast<std::size_t>(r * cols * block + c)] ==
                    planes[static_cast<std::size_t>(at)]);
        }
    }
    return 0;
}
