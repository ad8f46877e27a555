#include "nucfast/watershed.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "nucfast/components.hpp"
#include "nucfast/parallel.hpp"

namespace nucfast {

namespace {

// A first-in first-out list of pixels per level, as chains of chunks. A chunk is used again once it is read,
// so the queue takes no more memory than its longest state and stays in cache. A tail on a chunk's border
// stands for "no room": the list has no chunk yet, or its last is full.
class LevelQueue {
  public:
    explicit LevelQueue(std::size_t levels) : lists_(levels) {}

    void push(std::size_t level, std::int32_t pixel) {
        List& list = lists_[level];
        if (on_border(list.tail)) extend(list);
        *list.tail++ = pixel;
    }

    // Calls `visit(pixel)` for the pixels of one level, also for those pushed meanwhile, and empties it.
    // `soon(pixel)` announces most pixels some time before they are visited.
    template <typename Visit, typename Soon>
    void drain(std::size_t level, const Visit& visit, const Soon& soon) {
        constexpr std::ptrdiff_t ahead = 10;
        Chunk* chunk = lists_[level].head;
        while (chunk != nullptr) {
            const std::int32_t* pixel = chunk->pixels;
            const std::int32_t* const end = chunk->pixels + kPixels;
            for (; pixel != end && pixel != lists_[level].tail; ++pixel) {
                if (end - pixel > ahead) soon(pixel[ahead]);
                visit(*pixel);
            }
            Chunk* const next = pixel == end && pixel != lists_[level].tail ? chunk->next : nullptr;
            chunk->next = free_;
            free_ = chunk;
            chunk = next;
        }
        lists_[level] = {};
    }

  private:
    static constexpr std::size_t kBytes = 512;
    static constexpr std::size_t kPixels = (kBytes - sizeof(void*)) / sizeof(std::int32_t);
    struct alignas(kBytes) Chunk {
        Chunk* next = nullptr;
        std::int32_t pixels[kPixels] = {};
    };
    static_assert(sizeof(Chunk) == kBytes);
    struct List {
        Chunk* head = nullptr;
        std::int32_t* tail = nullptr;
    };

    static bool on_border(const std::int32_t* tail) {
        return reinterpret_cast<std::uintptr_t>(tail) % kBytes == 0;
    }

    void extend(List& list) {
        if (free_ == nullptr) {
            constexpr std::size_t block = 128;
            blocks_.push_back(std::make_unique<Chunk[]>(block));
            for (std::size_t i = 0; i < block; ++i) {
                blocks_.back()[i].next = free_;
                free_ = &blocks_.back()[i];
            }
        }
        Chunk* const chunk = free_;
        free_ = chunk->next;
        (list.tail == nullptr ? list.head : reinterpret_cast<Chunk*>(list.tail)[-1].next) = chunk;
        list.tail = chunk->pixels;
    }

    std::vector<List> lists_;
    Chunk* free_ = nullptr;
    std::vector<std::unique_ptr<Chunk[]>> blocks_;
};

// p / divisor for 0 <= p < 2^31 by one multiplication (Granlund, Montgomery: Division by invariant integers
// using multiplication, 1994).
class Divider {
  public:
    explicit Divider(std::int32_t divisor) {
        while ((std::int64_t{1} << (shift_ - 31)) < divisor) ++shift_;
        factor_ = (std::uint64_t{1} << shift_) / static_cast<std::uint64_t>(divisor) + 1;
    }
    std::int32_t operator()(std::int32_t p) const {
        return static_cast<std::int32_t>(static_cast<std::uint64_t>(p) * factor_ >> shift_);
    }

  private:
    int shift_ = 31;
    std::uint64_t factor_ = 0;
};

// Mask that is not reached yet holds -1 - elevation: one look tells whether a neighbour is to be flooded and
// at what level. Throws at a negative marker.
template <typename T>
void prepare(const T* elevation, const bool* mask, const Label* markers, std::ptrdiff_t count,
             Label* labels) {
    const auto* inside = reinterpret_cast<const std::uint8_t*>(mask);  // NumPy's bool may hold any byte
    Label lowest = 0;
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const Label marker = markers[i];
        lowest = std::min(lowest, marker);
        const Label label = marker != 0 ? marker : -1 - static_cast<Label>(elevation[i]);
        labels[i] = inside[i] != 0 ? label : 0;
    }
    if (lowest < 0) {
        throw std::invalid_argument("markers: expected no negative value, got " + std::to_string(lowest));
    }
}

// Calls `found(col)` for the marker pixels of row `r` that have something to flood. The others would leave
// the queue without effect.
template <typename Found>
void for_each_source(Plane<const Label> labels, std::ptrdiff_t r, std::vector<std::uint8_t>& scratch,
                     const Found& found) {
    const std::ptrdiff_t cols = labels.cols;
    const Label* here = labels.row(r);
    const Label* above = r > 0 ? here - cols : here;
    const Label* below = r + 1 < labels.rows ? here + cols : here;
    // A marker has neighbours to flood where the sign bits of its negative and of any neighbour meet.
    const auto floods = [&](std::ptrdiff_t c, Label left, Label right) {
        const Label open = (above[c] | below[c] | left | right) & -here[c];
        return static_cast<std::uint8_t>(static_cast<std::uint32_t>(open) >> 31);
    };
    scratch.resize(static_cast<std::size_t>(cols + 7) / 8 * 8);
    std::uint8_t* const flags = scratch.data();
    flags[0] = floods(0, 0, cols > 1 ? here[1] : 0);
    for (std::ptrdiff_t c = 1; c + 1 < cols; ++c) flags[c] = floods(c, here[c - 1], here[c + 1]);
    if (cols > 1) flags[cols - 1] = floods(cols - 1, here[cols - 2], 0);
    for (std::ptrdiff_t block = 0; block < cols; block += 8) {
        std::uint64_t word;
        std::memcpy(&word, flags + block, 8);
        if (word == 0) continue;
        const std::ptrdiff_t end = std::min(block + 8, cols);
        for (std::ptrdiff_t c = block; c < end; ++c) {
            if (flags[c] != 0) found(c);
        }
    }
}

// Floods from the given marker pixels, which come in raster order.
template <typename T>
void flood(Plane<const T> elevation, const std::int32_t* begin, const std::int32_t* end,
           const Divider& row_of, LevelQueue& queue, Plane<Label> labels) {
    constexpr std::size_t levels = std::size_t{std::numeric_limits<T>::max()} + 1;
    Label* const value = labels.data;
    const auto cols = static_cast<std::int32_t>(labels.cols);
    const auto last = static_cast<std::int32_t>(labels.size() - 1);
    for (const std::int32_t* p = begin; p != end; ++p) queue.push(elevation.data[*p], *p);
    const auto soon = [&](std::int32_t p) {
        __builtin_prefetch(value + p);
        __builtin_prefetch(value + std::max(p - cols, 0));
        __builtin_prefetch(value + (last - p > cols ? p + cols : last));
    };
    for (std::size_t level = 0; level < levels; ++level) {
        const auto highest_open = -1 - static_cast<Label>(level);
        const auto visit = [&](std::int32_t p) {
            const Label label = value[p];
            const auto look = [&](std::int32_t q) {
                const Label other = value[q];
                if (other >= 0) return;
                value[q] = label;
                queue.push(static_cast<std::size_t>(-1 - std::min(other, highest_open)), q);
            };
            const std::int32_t row = row_of(p);
            const std::int32_t col = p - row * cols;
            // Beyond the edge a pixel is its own neighbour, which is never open.
            look(p - (row > 0 ? cols : 0));
            look(p - (col > 0 ? 1 : 0));
            look(p + (col + 1 < cols ? 1 : 0));
            look(p + (row + 1 < labels.rows ? cols : 0));
        };
        queue.drain(level, visit, soon);
    }
}

// Consecutive parts of the mask, flooded together: large enough to make up for a walk through all levels,
// small enough to stay in cache.
struct Batches {
    std::vector<std::int32_t> of_part;   // (parts + 1) entry 0 is unused
    std::vector<std::int64_t> begin_px;  // (batches + 1) pixels in the batches before
};

Batches make_batches(const RunComponents& parts, std::int64_t target_px) {
    std::vector<std::int64_t> area(static_cast<std::size_t>(parts.count) + 1, 0);
    for (std::size_t i = 0; i < parts.runs.size(); ++i) {
        area[parts.labels[i]] += parts.runs[i].end - parts.runs[i].begin;
    }
    Batches batches{std::vector<std::int32_t>(area.size(), 0), {0}};
    std::int64_t pixels = 0;
    for (std::size_t part = 1; part < area.size(); ++part) {
        batches.of_part[part] = static_cast<std::int32_t>(batches.begin_px.size()) - 1;
        pixels += area[part];
        if (pixels - batches.begin_px.back() >= target_px) batches.begin_px.push_back(pixels);
    }
    batches.begin_px.push_back(pixels);
    return batches;
}

}  // namespace

template <typename T>
void watershed(Plane<const T> elevation, Plane<const bool> mask, Plane<const Label> markers, int threads,
               Plane<Label> labels) {
    if (labels.size() > std::numeric_limits<std::int32_t>::max()) {
        throw std::length_error("markers: expected fewer than 2^31 pixels, got " +
                                std::to_string(labels.size()));
    }
    if (labels.size() == 0) return;
    const std::ptrdiff_t cols = labels.cols;
    parallel_for(labels.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        prepare(elevation.row(first), mask.row(first), markers.row(first), (last - first) * cols,
                labels.row(first));
    });

    const RunComponents parts = run_components(mask, 4, threads);
    const Batches batches = make_batches(parts, sizeof(T) == 1 ? 1 << 16 : 1 << 20);
    const std::size_t count = batches.begin_px.size() - 1;
    // Sources by batch, those of one batch in raster order: a counting sort, each thread with its own rows.
    struct Piece {
        std::vector<std::int32_t> pixels;
        std::vector<std::int32_t> batch;
        std::vector<std::int64_t> next;  // (batches) count, then where the next one goes
    };
    std::vector<Piece> pieces(static_cast<std::size_t>(std::max(threads, 1)));
    parallel_for(labels.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int number) {
        Piece& piece = pieces[static_cast<std::size_t>(number)];
        piece.next.resize(count);
        std::vector<std::uint8_t> scratch;
        for (std::ptrdiff_t r = first; r < last; ++r) {
            auto run = parts.row_begin[r];
            for_each_source({labels.data, labels.rows, cols}, r, scratch, [&](std::ptrdiff_t c) {
                while (parts.runs[run].end <= c) ++run;
                const std::int32_t batch = batches.of_part[parts.labels[run]];
                piece.pixels.push_back(static_cast<std::int32_t>(r * cols + c));
                piece.batch.push_back(batch);
                ++piece.next[batch];
            });
        }
    });
    std::vector<std::int64_t> begin(count + 1, 0);
    std::int64_t total = 0;
    for (std::size_t batch = 0; batch < count; ++batch) {
        begin[batch] = total;
        for (Piece& piece : pieces) {
            if (piece.next.empty()) continue;
            const std::int64_t pixels = piece.next[batch];
            piece.next[batch] = total;
            total += pixels;
        }
    }
    begin[count] = total;
    std::vector<std::int32_t> sources(static_cast<std::size_t>(total));
    for (Piece& piece : pieces) {
        for (std::size_t i = 0; i < piece.pixels.size(); ++i) {
            sources[piece.next[piece.batch[i]]++] = piece.pixels[i];
        }
    }

    // A batch goes to the thread in whose share of the pixels its middle lies.
    const std::int64_t shared_px = std::max<std::int64_t>(batches.begin_px.back(), 1);
    parallel_for(threads, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        LevelQueue queue(std::size_t{std::numeric_limits<T>::max()} + 1);
        const Divider row_of(static_cast<std::int32_t>(cols));
        for (std::size_t batch = 0; batch < count; ++batch) {
            const std::int64_t middle = (batches.begin_px[batch] + batches.begin_px[batch + 1]) / 2;
            const std::int64_t owner = std::min<std::int64_t>(middle * threads / shared_px, threads - 1);
            if (owner < first || owner >= last) continue;
            flood(elevation, sources.data() + begin[batch], sources.data() + begin[batch + 1], row_of, queue,
                  labels);
        }
    });
    parallel_for(labels.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        Label* const end = labels.row(last);
        for (Label* label = labels.row(first); label != end; ++label) *label = std::max(*label, Label{0});
    });
}

template void watershed(Plane<const std::uint8_t>, Plane<const bool>, Plane<const Label>, int, Plane<Label>);
template void watershed(Plane<const std::uint16_t>, Plane<const bool>, Plane<const Label>, int, Plane<Label>);

}  // namespace nucfast
