// Words of 64 columns of a row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nucfast/dispatch.hpp"
#include "nucfast/view.hpp"

namespace nucfast {

using Word = std::uint64_t;  // bit b of word w of a row is about column 64 w + b
constexpr std::ptrdiff_t kBits = 64;

// What kernels take of a run at a time. Runs are short, and loops of a fixed length have no branches to
// mispredict, so the last block of a run computes on beyond it: what it writes there is replaced by the next
// run, in raster order, or never read.
constexpr std::ptrdiff_t kBlock = 16;

NUCFAST_INLINE int count_zeros(Word word) {  // below the lowest bit; `word` is not 0
    return __builtin_ctzll(word);
}

// The bits of 16 labels of two rows that differ.
NUCFAST_INLINE Word differing_bits_16(const Label* a, const Label* b) {
#if NUCFAST_X86
    const auto equal = [&](std::ptrdiff_t i) {
        return _mm_cmpeq_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)),
                               _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i)));
    };
    const __m128i all =
        _mm_packs_epi16(_mm_packs_epi32(equal(0), equal(4)), _mm_packs_epi32(equal(8), equal(12)));
    return static_cast<std::uint32_t>(_mm_movemask_epi8(all)) ^ 0xFFFFU;
#else
    Word word = 0;
    for (int i = 0; i < 16; ++i) word |= static_cast<Word>(a[i] != b[i]) << i;
    return word;
#endif
}

// The bits of the first `count` (at most 64) labels of two rows that differ.
NUCFAST_INLINE Word differing_bits(const Label* a, const Label* b, std::ptrdiff_t count) {
    Word word = 0;
    if (count == kBits) {
        for (int i = 0; i < kBits; i += 16) word |= differing_bits_16(a + i, b + i) << i;
        return word;
    }
    for (std::ptrdiff_t i = 0; i < count; ++i) word |= static_cast<Word>(a[i] != b[i]) << i;
    return word;
}

// The bits of 64 bytes that are not zero.
NUCFAST_INLINE Word nonzero_bits(const std::uint8_t* bytes) {
    Word word = 0;
#if NUCFAST_X86
    const __m128i zero = _mm_setzero_si128();
    for (int i = 0; i < kBits; i += 16) {
        const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i));
        word |= static_cast<Word>(_mm_movemask_epi8(_mm_cmpeq_epi8(part, zero))) << i;
    }
    return ~word;
#else
    for (int i = 0; i < kBits; ++i) word |= static_cast<Word>(bytes[i] != 0) << i;
    return word;
#endif
}

}  // namespace nucfast
