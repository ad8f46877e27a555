#include "nucfast/watershed.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "nucfast/components.hpp"

namespace nucfast {

namespace {

struct Pixel {
    std::int32_t index = 0;
    std::int32_t col = 0;
};

// A first-in first-out list per level. Lists are chains of chunks that are used again once read, so that the
// queue takes no more memory than its longest state and stays in cache. Sixty-four levels share a word of
// `used_`, sixty-four words a bit of `used_words_`, so the lowest level in use is found without a scan.
template <typename T>
class LevelQueue {
  public:
    LevelQueue() : lists_(kLevels), used_(kWords), used_words_((kWords + 63) / 64) {}

    bool empty() {
        while (first_ < used_words_.size() && used_words_[first_] == 0) ++first_;
        return first_ == used_words_.size();
    }

    void push(T level, Pixel pixel) {
        List& list = lists_[level];
        if (list.head < 0) {
            list.head = list.tail = take_chunk();
            list.begin = list.end = 0;
            const std::size_t word = level / 64U;
            used_[word] |= bit(level);
            used_words_[word / 64] |= bit(word);
            first_ = std::min(first_, word / 64);
        } else if (list.end == kChunk) {
            const std::int32_t chunk = take_chunk();
            chunks_[list.tail].next = chunk;
            list.tail = chunk;
            list.end = 0;
        }
        chunks_[list.tail].pixels[list.end++] = pixel;
    }

    // The first pixel of the lowest level; sets `level`. The queue must not be empty, as just found by
    // empty().
    Pixel pop(T& level) {
        const std::size_t word = first_ * 64 + static_cast<std::size_t>(__builtin_ctzll(used_words_[first_]));
        level = static_cast<T>(word * 64 + static_cast<std::size_t>(__builtin_ctzll(used_[word])));
        List& list = lists_[level];
        const Pixel pixel = chunks_[list.head].pixels[list.begin++];
        if (list.head == list.tail && list.begin == list.end) {
            free_chunks_.push_back(list.head);
            list.head = -1;
            used_[word] &= ~bit(level);
            if (used_[word] == 0) used_words_[first_] &= ~bit(word);
        } else if (list.begin == kChunk) {
            free_chunks_.push_back(list.head);
            list.head = chunks_[list.head].next;
            list.begin = 0;
        }
        return pixel;
    }

  private:
    static constexpr std::int32_t kChunk = 32;
    struct Chunk {
        Pixel pixels[kChunk];
        std::int32_t next;
    };
    // From pixel `begin` of chunk `head` up to pixel `end` of chunk `tail`.
    struct List {
        std::int32_t head = -1;
        std::int32_t tail = -1;
        std::int32_t begin = 0;
        std::int32_t end = 0;
    };

    static constexpr std::size_t kLevels = std::size_t{std::numeric_limits<T>::max()} + 1;
    static constexpr std::size_t kWords = kLevels / 64;
    static std::uint64_t bit(std::size_t i) { return std::uint64_t{1} << (i % 64); }

    std::int32_t take_chunk() {
        if (free_chunks_.empty()) {
            chunks_.emplace_back();
            return static_cast<std::int32_t>(chunks_.size()) - 1;
        }
        const std::int32_t chunk = free_chunks_.back();
        free_chunks_.pop_back();
        return chunk;
    }

    std::vector<List> lists_;
    std::vector<std::uint64_t> used_;
    std::vector<std::uint64_t> used_words_;
    std::size_t first_ = 0;
    std::vector<Chunk> chunks_;
    std::vector<std::int32_t> free_chunks_;
};

}  // namespace

template <typename T>
void watershed(Plane<const T> elevation, Plane<const bool> mask, Plane<Label> labels) {
    if (labels.size() > std::numeric_limits<std::int32_t>::max()) {
        throw std::length_error("markers: expected fewer than 2^31 pixels, got " +
                                std::to_string(labels.size()));
    }
    const auto size = static_cast<std::int32_t>(labels.size());
    const auto cols = static_cast<std::int32_t>(labels.cols);
    Label lowest = 0;
    for (std::int32_t i = 0; i < size; ++i) lowest = std::min(lowest, labels.data[i]);
    if (lowest < 0) {
        throw std::invalid_argument("markers: expected no negative value, got " + std::to_string(lowest));
    }

    // Mask that is not reached yet holds -1 - elevation: one look tells whether a neighbour is to be flooded
    // and at what level.
    const RunComponents parts = run_components(mask, 4, 1);
    for (std::ptrdiff_t r = 0; r < labels.rows; ++r) {
        Label* row = labels.row(r);
        const T* level = elevation.row(r);
        std::int32_t done = 0;
        for (auto i = parts.row_begin[r]; i < parts.row_begin[r + 1]; ++i) {
            const Run run = parts.runs[i];
            std::fill(row + done, row + run.begin, 0);
            for (auto c = run.begin; c < run.end; ++c) row[c] = row[c] == 0 ? -1 - level[c] : row[c];
            done = run.end;
        }
        std::fill(row + done, row + cols, 0);
    }

    const auto for_each_neighbour = [&](Pixel p, const auto& visit) {
        if (p.index >= cols) visit(Pixel{p.index - cols, p.col});
        if (p.col > 0) visit(Pixel{p.index - 1, p.col - 1});
        if (p.col + 1 < cols) visit(Pixel{p.index + 1, p.col + 1});
        if (p.index < size - cols) visit(Pixel{p.index + cols, p.col});
    };
    // Marker pixels that have something to flood, in raster order within each part: a counting sort. The
    // others would leave the queue without effect.
    struct Source {
        Pixel pixel;
        Label part;
    };
    std::vector<Source> found;
    std::vector<std::size_t> begin(static_cast<std::size_t>(parts.count) + 2, 0);
    for (std::ptrdiff_t r = 0; r < labels.rows; ++r) {
        const auto row_index = static_cast<std::int32_t>(r * cols);
        for (auto i = parts.row_begin[r]; i < parts.row_begin[r + 1]; ++i) {
            for (auto c = parts.runs[i].begin; c < parts.runs[i].end; ++c) {
                const Pixel pixel{row_index + c, c};
                if (labels.data[pixel.index] < 0) continue;
                bool floods = false;
                for_each_neighbour(pixel, [&](Pixel q) { floods |= labels.data[q.index] < 0; });
                if (!floods) continue;
                found.push_back({pixel, parts.labels[i]});
                ++begin[static_cast<std::size_t>(parts.labels[i]) + 1];
            }
        }
    }
    for (std::size_t part = 1; part < begin.size(); ++part) begin[part] += begin[part - 1];
    std::vector<Pixel> sources(found.size());
    std::vector<std::size_t> next(begin.begin(), begin.end() - 1);
    for (const Source& source : found) sources[next[static_cast<std::size_t>(source.part)]++] = source.pixel;

    LevelQueue<T> queue;
    for (std::size_t part = 1; part + 1 < begin.size(); ++part) {
        for (auto i = begin[part]; i < begin[part + 1]; ++i) {
            queue.push(elevation.data[sources[i].index], sources[i]);
        }
        while (!queue.empty()) {
            T level = 0;
            const Pixel pixel = queue.pop(level);
            const Label label = labels.data[pixel.index];
            for_each_neighbour(pixel, [&](Pixel q) {
                Label& other = labels.data[q.index];
                if (other >= 0) return;
                queue.push(std::max(static_cast<T>(-1 - other), level), q);
                other = label;
            });
        }
    }
    for (std::int32_t i = 0; i < size; ++i) labels.data[i] = std::max(labels.data[i], Label{0});
}

template void watershed(Plane<const std::uint8_t>, Plane<const bool>, Plane<Label>);
template void watershed(Plane<const std::uint16_t>, Plane<const bool>, Plane<Label>);

}  // namespace nucfast
