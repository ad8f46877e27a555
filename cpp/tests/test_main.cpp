#include "check.hpp"

int main() {
    for (const auto& test : nucfast::testing::cases()) {
        std::printf("%s\n", test.name);
        test.run();
    }
    std::printf("%zu cases, %d failed checks\n", nucfast::testing::cases().size(),
                nucfast::testing::failures());
    return nucfast::testing::failures() == 0 ? 0 : 1;
}
