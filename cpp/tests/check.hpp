// A test case registers itself; CHECK reports file and line and goes on.
#pragma once

#include <cstdio>
#include <vector>

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
