// A test case registers itself; CHECK reports file and line and goes on.
#pragma once

#include <cstdio>
#include <vector>

#include "nucfast/dispatch.hpp"

namespace nucfast::testing {

struct Case {
    const char* name;
    void (*run)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

inline int& failures() {
    static int count = 0;
    return count;
}

struct Register {
    Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

// Calls `body` with every instruction set that this machine has.
template <typename Body>
void for_each_isa(Body&& body) {
    for (const Isa limit : {Isa::baseline, Isa::avx2, Isa::avx512}) {
        if (set_isa(limit) == limit) body();
    }
    set_isa({});
}

}  // namespace nucfast::testing

#define TEST(name)                                                          \
    static void name();                                                     \
    static const ::nucfast::testing::Register register_##name(#name, name); \
    static void name()

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
            ++::nucfast::testing::failures();                                             \
        }                                                                                 \
    } while (false)
