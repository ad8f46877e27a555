#include "nucfast/parallel.hpp"

#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

namespace nucfast {

void parallel_for(std::ptrdiff_t count, int threads,
                  const std::function<void(std::ptrdiff_t, std::ptrdiff_t, int)>& body) {
    if (count <= 0) return;
    const auto pieces = static_cast<int>(std::clamp<std::ptrdiff_t>(threads, 1, count));
    if (pieces == 1) {
        body(0, count, 0);
        return;
    }
    std::vector<std::exception_ptr> errors(static_cast<std::size_t>(pieces));
    const auto run = [&](int piece) {
        try {
            body(count * piece / pieces, count * (piece + 1) / pieces, piece);
        } catch (...) {
            errors[static_cast<std::size_t>(piece)] = std::current_exception();
        }
    };
    std::vector<std::thread> workers;
    workers.reserve(static_cast<std::size_t>(pieces - 1));
    for (int piece = 1; piece < pieces; ++piece) workers.emplace_back(run, piece);
    run(0);
    for (auto& worker : workers) worker.join();
    for (const auto& error : errors) {
        if (error) std::rethrow_exception(error);
    }
}

}  // namespace nucfast
