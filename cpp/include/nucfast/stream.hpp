// Copies that leave the caches alone.
//
// A plain store first reads the line that it overwrites. For an array too large to stay in a core's cache
// that read is a third of a copy's memory traffic, and the lines written push others out. Stores that go past
// the caches do neither. SSE2 is enough for them; elsewhere this is a plain copy.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#define NUCFAST_STREAM 1
#include <emmintrin.h>
#else
#define NUCFAST_STREAM 0
#endif

namespace nucfast {

// Results of this size and more do not stay in a core's own caches anyway.
constexpr std::ptrdiff_t streaming_bytes = std::ptrdiff_t{1} << 21;

// Copies `bytes` that do not overlap. Other threads see them after stream_fence().
inline void stream_copy(const void* from, void* to, std::ptrdiff_t bytes) {
#if NUCFAST_STREAM
    const auto* source = static_cast<const std::uint8_t*>(from);
    auto* target = static_cast<std::uint8_t*>(to);
    // Whole lines only: a line that is half streamed costs more than a plain store.
    const auto head = std::min<std::ptrdiff_t>(
        bytes, static_cast<std::ptrdiff_t>(-reinterpret_cast<std::uintptr_t>(target) & 63));
    std::memcpy(target, source, static_cast<std::size_t>(head));
    std::ptrdiff_t k = head;
    for (; k + 64 <= bytes; k += 64) {
        for (int part = 0; part < 64; part += 16) {
            const __m128i piece = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + k + part));
            _mm_stream_si128(reinterpret_cast<__m128i*>(target + k + part), piece);
        }
    }
    std::memcpy(target + k, source + k, static_cast<std::size_t>(bytes - k));
#else
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
#endif
}

// To call once by each thread that streamed, when it is done.
inline void stream_fence() {
#if NUCFAST_STREAM
    _mm_sfence();
#endif
}

}  // namespace nucfast
