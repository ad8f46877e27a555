// Turns the bytes of a fuzzer into arguments of kernels.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "nucfast/view.hpp"

// Ends the run, which makes the fuzzer keep the input.
#define REQUIRE(condition)                                                                \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                                 \
        }                                                                                 \
    } while (false)

namespace nucfast::fuzzing {

// Reads bytes as they come; zeros when there are no more.
class Input {
  public:
    Input(const std::uint8_t* data, std::size_t size) : next_(data), end_(data + size) {}

    std::uint8_t byte() { return next_ < end_ ? *next_++ : std::uint8_t{0}; }
    int between(int low, int high) { return low + byte() % (high - low + 1); }

    template <typename T>
    std::vector<T> values(std::ptrdiff_t count, int choices = 256) {
        std::vector<T> found(static_cast<std::size_t>(count));
        for (T& value : found) value = static_cast<T>(byte() % choices);
        return found;
    }

    // Mostly small ids, so that objects touch and meet again; sometimes the greatest there is.
    std::vector<Label> labels(std::ptrdiff_t count) {
        std::vector<Label> found = values<Label>(count, 8);
        for (Label& label : found) {
            if (label == 7) label = std::numeric_limits<Label>::max();
        }
        return found;
    }

    // Where each of some rings begins among the vertices of all, and where the last one ends.
    std::vector<std::int64_t> offsets(int rings, int most) {
        std::vector<std::int64_t> found{0};
        for (int i = 0; i < rings; ++i) found.push_back(found.back() + between(0, most));
        return found;
    }

  private:
    const std::uint8_t* next_;
    const std::uint8_t* end_;
};

}  // namespace nucfast::fuzzing
