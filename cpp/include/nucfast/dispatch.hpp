// Which instruction set the kernels use: chosen at run time, so that one build for any x86-64 is fast on
// each.
//
// A kernel always has a plain C++ form, which is the only one outside x86-64. Where it pays, the same
// function exists compiled for AVX2 or AVX-512, with the same result to the last bit: the build forbids fused
// multiply-adds (-ffp-contract=off), which are the only difference these sets could make to plain code. The
// compiler is GCC or Clang.
//
// Two ways to write one:
//
//   NUCFAST_INLINE void scale_body(float* v, std::ptrdiff_t n) { ... plain loops for the compiler ... }
//   NUCFAST_VARIANTS(void, scale, (float* v, std::ptrdiff_t n), (v, n))  // scale() picks its best form
//
//   #if NUCFAST_X86
//   NUCFAST_AVX2 void scale_avx2(float* v, std::ptrdiff_t n) { ... intrinsics ... }
//   #endif                                                     // and a switch on isa()
//
// Do not widen an AVX-512 mask to a longer integer: GCC 12 may spill it to the stack and read more than it
// wrote. Join masks with _mm512_kunpackw and _mm512_kunpackd.
#pragma once

#include <optional>

#if defined(__x86_64__)
#define NUCFAST_X86 1
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 of its own header, where it means to be
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#else
#define NUCFAST_X86 0
#endif

namespace nucfast {

enum class Isa {
    baseline,  // what the compiler assumes: SSE2 on x86-64
    avx2,      // with BMI1, BMI2 and POPCNT: x86-64-v3 without FMA
    avx512     // F, BW, DQ, VL and CD, on top of avx2: x86-64-v4
};

// The set to use: the best that CPU and operating system support, not above the limit, which is the
// environment variable NUCFAST_ISA (baseline, avx2 or avx512) until set_isa is called. Throws
// std::invalid_argument if the variable holds anything else.
Isa isa();

// Sets the limit for all threads, for tests that compare the variants; without one the environment's holds
// again. Returns what isa() now is.
Isa set_isa(std::optional<Isa> limit);

}  // namespace nucfast

// What a body and every function it calls must be, or they keep the baseline's instructions.
#define NUCFAST_INLINE inline __attribute__((always_inline))

#if NUCFAST_X86
#define NUCFAST_AVX2 __attribute__((target("avx2,bmi,bmi2,popcnt")))
#define NUCFAST_AVX512 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,bmi,bmi2,popcnt")))
#define NUCFAST_VARIANTS(result, name, parameters, arguments) \
    static result name##_baseline parameters {                \
        return name##_body arguments;                         \
    }                                                         \
    NUCFAST_AVX2 static result name##_avx2 parameters {       \
        return name##_body arguments;                         \
    }                                                         \
    NUCFAST_AVX512 static result name##_avx512 parameters {   \
        return name##_body arguments;                         \
    }                                                         \
    static result name parameters {                           \
        switch (::nucfast::isa()) {                           \
            case ::nucfast::Isa::avx512:                      \
                return name##_avx512 arguments;               \
            case ::nucfast::Isa::avx2:                        \
                return name##_avx2 arguments;                 \
            default:                                          \
                return name##_baseline arguments;             \
        }                                                     \
    }
#else
#define NUCFAST_VARIANTS(result, name, parameters, arguments) \
    static result name parameters {                           \
        return name##_body arguments;                         \
    }
#endif
