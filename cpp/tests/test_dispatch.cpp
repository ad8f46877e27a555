#include "nucfast/dispatch.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "check.hpp"

namespace nucfast {

namespace {

NUCFAST_INLINE void multiply_add_body(const float* a, const float* b, float* sum, std::ptrdiff_t count) {
    for (std::ptrdiff_t i = 0; i < count; ++i) sum[i] = sum[i] + a[i] * b[i];
}
NUCFAST_VARIANTS(void, multiply_add, (const float* a, const float* b, float* sum, std::ptrdiff_t count),
                 (a, b, sum, count))

}  // namespace

TEST(isa_is_the_best_up_to_the_limit) {
    const Isa best = set_isa(Isa::avx512);
    for (const Isa limit : {Isa::baseline, Isa::avx2, Isa::avx512}) {
        CHECK(set_isa(limit) == std::min(limit, best));
        CHECK(isa() == std::min(limit, best));
    }
    set_isa({});
}

TEST(variants_are_equal_to_the_last_bit) {
    std::vector<float> a(1001);
    std::vector<float> b(a.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
        a[i] =
            1.0F + static_cast<float>(i) / 3.0F;  // products that a fused multiply-add would round otherwise
        b[i] = 1.0F / a[i];
    }
    std::vector<std::vector<float>> sums;
    testing::for_each_isa([&] {
        sums.emplace_back(a.size(), -1.0F);
        multiply_add(a.data(), b.data(), sums.back().data(), static_cast<std::ptrdiff_t>(a.size()));
    });
    for (const auto& sum : sums) CHECK(sum == sums.front());
    CHECK(*std::max_element(sums.front().begin(), sums.front().end()) < 1e-6F);
}

}  // namespace nucfast
