// Words of 64 columns of a row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nucfast/dispatch.hpp"
#include "nucfast/view.hpp"

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace nucfast {

using Word = std::uint64_t;  // bit b of word w of a row is about column 64 w + b
constexpr std::ptrdiff_t kBits = 64;

NUCFAST_INLINE int count_zeros(Word word) {  // below the lowest bit; `word` is not 0
#if defined(_MSC_VER)
    unsigned long index = 0;
    _BitScanForward64(&index, word);
    return static_cast<int>(index);
#else
    return __builtin_ctzll(word);
#endif
}

// The bits of the first `count` (at most 64) labels of two rows that differ.
NUCFAST_INLINE Word differing_bits(const Label* a, const Label* b, std::ptrdiff_t count) {
    Word word = 0;
#if NUCFAST_X86
    if (count == kBits) {
        const auto equal = [&](std::ptrdiff_t i) {
            return _mm_cmpeq_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)),
                                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
        };
        for (std::ptrdiff_t i = 0; i < kBits; i += 16) {
            const __m128i part = _mm_packs_epi16(_mm_packs_epi32(equal(i), equal(i + 4)),
                                                 _mm_packs_epi32(equal(i + 8), equal(i + 12)));
            word |= static_cast<Word>(static_cast<std::uint32_t>(_mm_movemask_epi8(part))) << i;
        }
        return ~word;
    }
#endif
    for (std::ptrdiff_t i = 0; i < count; ++i) word |= static_cast<Word>(a[i] != b[i]) << i;
    return word;
}

}  // namespace nucfast
