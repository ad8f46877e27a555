#include <atomic>
#include <stdexcept>

#include "check.hpp"
#include "nucfast/parallel.hpp"

namespace nucfast {

TEST(parallel_for_covers_the_range_once) {
    for (const int threads : {1, 2, 3, 16}) {
        std::vector<std::atomic<int>> hits(7);
        parallel_for(7, threads, [&](std::ptrdiff_t begin, std::ptrdiff_t end, int) {
            for (auto i = begin; i < end; ++i) ++hits[static_cast<std::size_t>(i)];
        });
        for (const auto& hit : hits) CHECK(hit == 1);
    }
}

TEST(parallel_for_rethrows) {
    bool caught = false;
    try {
        parallel_for(4, 2, [](std::ptrdiff_t begin, std::ptrdiff_t, int) {
            if (begin > 0) throw std::runtime_error("second piece");
        });
    } catch (const std::runtime_error&) {
        caught = true;
    }
    CHECK(caught);
}

}  // namespace nucfast
