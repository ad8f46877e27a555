#include "nucfast/dispatch.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace nucfast {

namespace {

Isa supported() {
#if NUCFAST_X86
    __builtin_cpu_init();  // the flags it reads are only set where the operating system keeps the registers
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512cd");
    if (avx2) return avx512 ? Isa::avx512 : Isa::avx2;
#endif
    return Isa::baseline;
}

Isa limit_of_environment() {
    const char* name = std::getenv("NUCFAST_ISA");
    if (name == nullptr) return Isa::avx512;
    const std::string limit(name);
    if (limit == "baseline") return Isa::baseline;
    if (limit == "avx2") return Isa::avx2;
    if (limit == "avx512") return Isa::avx512;
    throw std::invalid_argument("NUCFAST_ISA: expected baseline, avx2 or avx512, got " + limit);
}

std::atomic<Isa>& current() {
    static std::atomic<Isa> value(std::min(supported(), limit_of_environment()));
    return value;
}

}  // namespace

Isa isa() {
    return current().load(std::memory_order_relaxed);
}

Isa set_isa(std::optional<Isa> limit) {
    const Isa chosen = std::min(supported(), limit ? *limit : limit_of_environment());
    current().store(chosen, std::memory_order_relaxed);
    return chosen;
}

}  // namespace nucfast
