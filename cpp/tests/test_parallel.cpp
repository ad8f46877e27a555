#include "nucfast/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"

#if defined(__linux__)
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace nucfast {

namespace {

std::int64_t sum_to(std::ptrdiff_t count, int threads) {
    std::atomic<std::int64_t> sum{0};
    parallel_for(count, threads, [&](std::ptrdiff_t begin, std::ptrdiff_t end, int) {
        for (auto i = begin; i < end; ++i) sum += i;
    });
    return sum;
}

}  // namespace

TEST(parallel_for_covers_the_range_once) {
    for (const int threads : {1, 2, 3, 16}) {
        std::vector<std::atomic<int>> hits(7);
        std::vector<std::atomic<int>> pieces(16);
        parallel_for(7, threads, [&](std::ptrdiff_t begin, std::ptrdiff_t end, int piece) {
            for (auto i = begin; i < end; ++i) ++hits[static_cast<std::size_t>(i)];
            ++pieces[static_cast<std::size_t>(piece)];
        });
        for (const auto& hit : hits) CHECK(hit == 1);
        for (int piece = 0; piece < 16; ++piece)
            CHECK(pieces[piece] == (piece < std::min(threads, 7) ? 1 : 0));
    }
    parallel_for(0, 4, [](std::ptrdiff_t, std::ptrdiff_t, int) { CHECK(false); });
}

TEST(parallel_for_rethrows_the_first_piece_that_threw_after_all_have_run) {
    for (int repeat = 0; repeat < 50; ++repeat) {
        std::atomic<int> ran{0};
        std::string caught;
        try {
            parallel_for(6, 6, [&](std::ptrdiff_t, std::ptrdiff_t, int piece) {
                ++ran;
                if (piece % 2 == 1) throw std::runtime_error(std::to_string(piece));
            });
        } catch (const std::runtime_error& error) {
            caught = error.what();
        }
        CHECK(caught == "1");
        CHECK(ran == 6);
    }
}

TEST(parallel_for_may_be_nested_and_called_by_several_threads) {
    std::vector<std::thread> callers;
    std::atomic<int> right{0};
    for (int caller = 0; caller < 4; ++caller) {
        callers.emplace_back([&] {
            for (int repeat = 0; repeat < 50; ++repeat) {
                std::atomic<std::int64_t> sum{0};
                parallel_for(3, 3, [&](std::ptrdiff_t begin, std::ptrdiff_t end, int) {
                    for (auto i = begin; i < end; ++i) sum += sum_to(100, 2);
                });
                right += sum == 3 * 4950;
            }
        });
    }
    for (auto& caller : callers) caller.join();
    CHECK(right == 200);
}

#if defined(__linux__)

TEST(parallel_for_keeps_to_the_affinity_mask_of_its_caller) {
    sum_to(1000, 4);  // workers are there, with the mask of now
    cpu_set_t before;
    CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    for (int cpu = 0; CPU_COUNT(&one) == 0; ++cpu) {
        if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
    }
    for (const cpu_set_t& allowed : {one, before}) {
        CHECK(sched_setaffinity(0, sizeof allowed, &allowed) == 0);
        std::mutex mutex;
        std::set<std::thread::id> seen;
        parallel_for(16, 16, [&](std::ptrdiff_t, std::ptrdiff_t, int) {
            std::this_thread::yield();
            const std::lock_guard lock(mutex);
            seen.insert(std::this_thread::get_id());
            cpu_set_t own;
            CHECK(sched_getaffinity(0, sizeof own, &own) == 0);
            CHECK(CPU_EQUAL(&own, &allowed));
        });
        CHECK(static_cast<int>(seen.size()) <= CPU_COUNT(&allowed));
    }
}

#if !defined(__SANITIZE_THREAD__)  // which forbids threads in the child of a process that has some
TEST(parallel_for_works_on_both_sides_of_a_fork) {
    CHECK(sum_to(1000, 4) == 499500);
    const pid_t child = fork();
    if (child == 0) _exit(sum_to(1000, 4) == 499500 ? 0 : 1);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    CHECK(sum_to(1000, 4) == 499500);
}
#endif

#endif

}  // namespace nucfast
