#include "nucfast/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace nucfast {

namespace {

// The CPUs that a thread may run on.
class Affinity {
  public:
    // Of the calling thread.
    Affinity() {
#if defined(__linux__)
        known_ = sched_getaffinity(0, sizeof cpus_, &cpus_) == 0;
        if (known_) {
            count_ = CPU_COUNT(&cpus_);
            return;
        }
#endif
        count_ = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    }

    int count() const { return count_; }

    // Binds the calling thread, which `current` describes, to these CPUs.
    void apply(Affinity& current) const {
#if defined(__linux__)
        if (!known_ || CPU_EQUAL(&cpus_, &current.cpus_)) return;
        if (sched_setaffinity(0, sizeof cpus_, &cpus_) == 0) current = *this;
#else
        static_cast<void>(current);
#endif
    }

  private:
#if defined(__linux__)
    cpu_set_t cpus_{};
    bool known_ = false;  // false on machines with more CPUs than the set holds
#endif
    int count_ = 1;
};

// One call of parallel_for; lives on its caller's stack. The pool's mutex guards what changes.
struct Job {
    std::ptrdiff_t count;
    int pieces;
    const std::function<void(std::ptrdiff_t, std::ptrdiff_t, int)>& body;
    Affinity affinity;
    int helpers = 0;  // workers that may still join
    int next = 0;     // first piece that nobody has begun
    int running = 0;
    int failed = pieces;  // first piece that threw, and what
    std::exception_ptr error = nullptr;
    std::condition_variable ended{};

    bool open() const { return next < pieces; }
};

class Pool {
  public:
    void run(Job& job) {
        std::unique_lock lock(mutex_);
        job.helpers = std::min(job.pieces, job.affinity.count()) - 1;
        grow(job.helpers);
        const auto place = jobs_.insert(jobs_.end(), &job);
        if (job.helpers == 1) {
            wake_.notify_one();
        } else if (job.helpers > 1) {
            wake_.notify_all();
        }
        work_on(job, lock);
        jobs_.erase(place);
        job.ended.wait(lock, [&] { return job.running == 0; });
    }

  private:
    void grow(int workers) {
        for (; workers_ < workers; ++workers_) {
            try {
                std::thread(&Pool::serve, this).detach();
            } catch (const std::system_error&) {
                return;  // no more threads to be had: the caller does their part
            }
        }
    }

    [[noreturn]] void serve() {
        Affinity current;
        std::unique_lock lock(mutex_);
        while (true) {
            const auto found = std::find_if(jobs_.begin(), jobs_.end(),
                                            [](const Job* job) { return job->helpers > 0 && job->open(); });
            if (found == jobs_.end()) {
                wake_.wait(lock);
                continue;
            }
            Job& job = **found;
            --job.helpers;
            job.affinity.apply(current);
            work_on(job, lock);
        }
    }

    // Runs pieces until none is left to begin. Once it returns, only the job's caller may touch the job.
    static void work_on(Job& job, std::unique_lock<std::mutex>& lock) {
        while (job.open()) {
            const int piece = job.next++;
            ++job.running;
            lock.unlock();
            std::exception_ptr error;
            try {
                job.body(job.count * piece / job.pieces, job.count * (piece + 1) / job.pieces, piece);
            } catch (...) {
                error = std::current_exception();
            }
            lock.lock();
            if (error && piece < job.failed) {
                job.failed = piece;
                job.error = error;
            }
            if (--job.running == 0 && !job.open()) job.ended.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::list<Job*> jobs_;
    int workers_ = 0;
};

std::atomic<Pool*> shared_pool{nullptr};

// Never destroyed: its workers wait in it until the process ends.
Pool& pool() {
    Pool* existing = shared_pool.load(std::memory_order_acquire);
    if (existing != nullptr) return *existing;
#if defined(__unix__) || defined(__APPLE__)
    // The child of a fork has none of the workers, and perhaps a mutex that one of them held.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { shared_pool = nullptr; });
    static_cast<void>(registered);
#endif
    auto* created = new Pool;
    if (shared_pool.compare_exchange_strong(existing, created)) return *created;
    delete created;
    return *existing;
}

}  // namespace

void parallel_for(std::ptrdiff_t count, int threads,
                  const std::function<void(std::ptrdiff_t, std::ptrdiff_t, int)>& body) {
    if (count <= 0) return;
    const auto pieces = static_cast<int>(std::clamp<std::ptrdiff_t>(threads, 1, count));
    if (pieces == 1) {
        body(0, count, 0);
        return;
    }
    Job job{count, pieces, body, Affinity()};
    pool().run(job);
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace nucfast
