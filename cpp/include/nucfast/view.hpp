// Borrowed views of caller memory. They own nothing and are cheap to copy.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nucfast {

using Label = std::int32_t;  // 0 = background, 1..n = nuclei

// One image plane in C order: `data[row * cols + col]`.
template <typename T>
struct Plane {
    T* data = nullptr;
    std::ptrdiff_t rows = 0;
    std::ptrdiff_t cols = 0;

    T* row(std::ptrdiff_t r) const { return data + r * cols; }
    T& operator()(std::ptrdiff_t r, std::ptrdiff_t c) const { return data[r * cols + c]; }
    std::ptrdiff_t size() const { return rows * cols; }
};

// An image whose pixels hold `channels` interleaved values: `data[(row * cols + col) * channels + channel]`.
template <typename T>
struct Image {
    T* data = nullptr;
    std::ptrdiff_t rows = 0;
    std::ptrdiff_t cols = 0;
    std::ptrdiff_t channels = 0;

    T* row(std::ptrdiff_t r) const { return data + r * cols * channels; }
    std::ptrdiff_t size() const { return rows * cols * channels; }
};

// A part of such an image: its rows are whole, but lie `step` values apart.
template <typename T>
struct Cutout {
    T* data = nullptr;
    std::ptrdiff_t rows = 0;
    std::ptrdiff_t cols = 0;
    std::ptrdiff_t channels = 0;
    std::ptrdiff_t step = 0;

    T* row(std::ptrdiff_t r) const { return data + r * step; }
};

}  // namespace nucfast
