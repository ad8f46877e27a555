#include "nucfast/overlap.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

namespace nucfast {
namespace {

using Index = std::int32_t;

// A true id in the high half, a pred id in the low one: sorting by key sorts by (true, pred).
using Key = std::uint64_t;

Key key_of(Label truth, Label pred) {
    return static_cast<Key>(static_cast<std::uint32_t>(truth)) << 32 | static_cast<std::uint32_t>(pred);
}
std::int64_t true_of(Key key) {
    return static_cast<std::int64_t>(key >> 32);
}
std::int64_t pred_of(Key key) {
    return static_cast<std::int64_t>(key & 0xffffffffu);
}

struct Shared {
    Key key;
    std::int64_t pixels;
    std::int64_t rows;  // sum of the row indices of these pixels
    std::int64_t cols;
};

// Sums per pair. Linear probing; at most half of the slots are used.
class PairTable {
  public:
    PairTable() : slots_(std::size_t{1} << (64 - shift_), Shared{kFree, 0, 0, 0}) {}

    void add(Key key, std::int64_t pixels, std::int64_t rows, std::int64_t cols) {
        Shared* slot = find(key);
        if (slot->key == kFree) {
            if (2 * (used_ + 1) > slots_.size()) {
                grow();
                slot = find(key);
            }
            slot->key = key;
            ++used_;
        }
        slot->pixels += pixels;
        slot->rows += rows;
        slot->cols += cols;
    }

    std::vector<Shared> sorted() const {
        std::vector<Shared> pairs;
        pairs.reserve(used_);
        for (const Shared& slot : slots_) {
            if (slot.key != kFree) pairs.push_back(slot);
        }
        std::sort(pairs.begin(), pairs.end(), [](const Shared& a, const Shared& b) { return a.key < b.key; });
        return pairs;
    }

  private:
    static constexpr Key kFree = ~Key{0};  // no pair: ids end at 2^31 - 1

    Shared* find(Key key) {
        const std::size_t mask = slots_.size() - 1;
        // Fibonacci hashing: the high bits of the product are the well mixed ones.
        auto place = static_cast<std::size_t>((key * 0x9e3779b97f4a7c15u) >> shift_);
        while (slots_[place].key != key && slots_[place].key != kFree) place = (place + 1) & mask;
        return &slots_[place];
    }

    void grow() {
        --shift_;
        std::vector<Shared> old(slots_.size() * 2, Shared{kFree, 0, 0, 0});
        old.swap(slots_);
        for (const Shared& slot : old) {
            if (slot.key != kFree) *find(slot.key) = slot;
        }
    }

    int shift_ = 54;  // 64 - log2(slots)
    std::vector<Shared> slots_;
    std::size_t used_ = 0;
};

void expect_id(Label id, const char* name) {
    if (id < 0)
        throw std::invalid_argument(std::string(name) + ": expected ids >= 0, got " + std::to_string(id));
}

// Calls `body(begin, end)` for every run of one row in which neither map changes. `changes` is scratch of
// `scratch_size(cols)` zeroed bytes.
template <typename Body>
void for_each_run(const Label* truth, const Label* pred, std::ptrdiff_t cols, std::uint8_t* changes,
                  const Body& body) {
    for (std::ptrdiff_t c = 1; c < cols; ++c) {
        changes[c] = ((truth[c] ^ truth[c - 1]) | (pred[c] ^ pred[c - 1])) != 0;
    }
    std::ptrdiff_t begin = 0;
    for (std::ptrdiff_t block = 0; block < cols; block += 64) {
        // Eight bytes of 0 or 1 become eight bits by one multiplication; runs then come out without a branch
        // per pixel.
        std::uint64_t bits = 0;
        for (int k = 0; k < 8; ++k) {
            std::uint64_t bytes;
            std::memcpy(&bytes, changes + block + 8 * k, 8);
            bits |= (bytes * 0x0102040810204080u >> 56) << 8 * k;
        }
        for (; bits != 0; bits &= bits - 1) {
            const std::ptrdiff_t end = block + __builtin_ctzll(bits);
            body(begin, end);
            begin = end;
        }
    }
    body(begin, cols);
}

// Whole blocks, so that the last one is read like the others; bytes behind the row stay 0.
std::size_t scratch_size(std::ptrdiff_t cols) {
    return static_cast<std::size_t>((cols + 63) / 64 * 64);
}

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "for_each_run packs bytes in memory order");

void append(LabelTable& table, std::int64_t id, const Shared& pixels) {
    if (table.ids.empty() || table.ids.back() != id) {
        table.ids.push_back(id);
        table.areas.push_back(0);
        table.centroids.insert(table.centroids.end(), 2, 0.0);
    }
    table.areas.back() += pixels.pixels;
    // Sums of integers far below 2^53: exact.
    table.centroids.end()[-2] += static_cast<double>(pixels.rows);
    table.centroids.end()[-1] += static_cast<double>(pixels.cols);
}

void finish(LabelTable& table) {
    for (std::size_t i = 0; i < table.ids.size(); ++i) {
        table.centroids[2 * i] /= static_cast<double>(table.areas[i]);
        table.centroids[2 * i + 1] /= static_cast<double>(table.areas[i]);
    }
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Minimum-cost assignment of rows to columns. `edges(row, visit)` calls `visit(col, cost)` for every column
// the row may have; a row may also stay without one at the price `skip`. Rows enter one after another, each
// by a shortest augmenting path (Dijkstra on reduced costs), which keeps the assignment of the rows so far
// optimal. Returns the column of each row, or -1.
template <typename Edges>
std::vector<Index> assign(Index rows, Index cols, const Edges& edges, double skip) {
    const auto at = [](Index i) { return static_cast<std::size_t>(i); };
    std::vector<double> row_price(at(rows), 0.0), col_price(at(cols), 0.0);
    std::vector<Index> col_of(at(rows), -1), row_of(at(cols), -1);
    // Of the search for one path; reset through `touched`, so that a search costs no more than it visits.
    std::vector<double> distance(at(cols), kInfinity);
    std::vector<Index> via(at(cols), -1);  // the row from which a column was reached
    std::vector<char> settled(at(cols), 0);
    std::vector<Index> touched, order;
    using Entry = std::pair<double, Index>;
    std::vector<Entry> heap;
    const std::greater<Entry> later;

    for (Index start = 0; start < rows; ++start) {
        touched.clear();
        order.clear();
        heap.clear();
        double best = kInfinity;  // the shortest way to an end: a free column, or a row that gives up its own
        Index end_row = start, end_col = -1;
        Index row = start;
        double walked = 0.0;
        for (;;) {
            const double give_up = walked + skip - row_price[at(row)];
            if (give_up < best) {
                best = give_up;
                end_row = row;
                end_col = -1;
            }
            const double offset = walked - row_price[at(row)];
            edges(row, [&](Index col, double cost) {
                const double length = offset + (cost - col_price[at(col)]);
                if (length >= best || length >= distance[at(col)] || settled[at(col)]) return;
                if (distance[at(col)] == kInfinity) touched.push_back(col);
                distance[at(col)] = length;
                via[at(col)] = row;
                if (row_of[at(col)] < 0) {
                    best = length;
                    end_row = row;
                    end_col = col;
                } else {
                    heap.emplace_back(length, col);
                    std::push_heap(heap.begin(), heap.end(), later);
                }
            });
            Index next = -1;
            while (!heap.empty() && heap.front().first < best) {
                const auto [length, col] = heap.front();
                std::pop_heap(heap.begin(), heap.end(), later);
                heap.pop_back();
                if (!settled[at(col)] && length == distance[at(col)]) {
                    next = col;
                    break;
                }
            }
            if (next < 0) break;
            settled[at(next)] = 1;
            order.push_back(next);
            row = row_of[at(next)];
            walked = distance[at(next)];
        }
        row_price[at(start)] += best;
        for (const Index col : order) {
            const double slack = best - distance[at(col)];
            row_price[at(row_of[at(col)])] += slack;
            col_price[at(col)] -= slack;
        }
        for (Index taker = end_row, col = end_col;;) {
            const Index left = col_of[at(taker)];
            col_of[at(taker)] = col;
            if (col >= 0) row_of[at(col)] = taker;
            if (taker == start) break;
            col = left;
            taker = via[at(col)];
        }
        for (const Index col : touched) {
            distance[at(col)] = kInfinity;
            settled[at(col)] = 0;
        }
    }
    return col_of;
}

// Replaces ids by their rank among the distinct ones; returns how many those are.
Index to_ranks(const std::int64_t* ids, std::ptrdiff_t count, std::vector<Index>& ranks) {
    std::vector<std::int64_t> distinct(ids, ids + count);
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    ranks.resize(static_cast<std::size_t>(count));
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const auto found = std::lower_bound(distinct.begin(), distinct.end(), ids[i]);
        ranks[static_cast<std::size_t>(i)] = static_cast<Index>(found - distinct.begin());
    }
    return static_cast<Index>(distinct.size());
}

void expect_finite(Plane<const double> points, const char* name) {
    for (std::ptrdiff_t i = 0; i < points.size(); ++i) {
        if (!std::isfinite(points.data[i])) {
            throw std::invalid_argument(std::string(name) + ": expected finite coordinates, got " +
                                        std::to_string(points.data[i]));
        }
    }
}

}  // namespace

Overlaps overlaps(Plane<const Label> truth, Plane<const Label> pred) {
    PairTable table;
    std::vector<std::uint8_t> changes(scratch_size(truth.cols));
    for (std::ptrdiff_t row = 0; row < truth.rows && truth.cols > 0; ++row) {
        const Label* const true_row = truth.row(row);
        const Label* const pred_row = pred.row(row);
        for_each_run(true_row, pred_row, truth.cols, changes.data(),
                     [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
                         const Label t = true_row[begin];
                         const Label p = pred_row[begin];
                         if ((t | p) == 0) return;
                         expect_id(t, "true");
                         expect_id(p, "pred");
                         const std::ptrdiff_t pixels = end - begin;
                         table.add(key_of(t, p), pixels, pixels * row, pixels * (begin + end - 1) / 2);
                     });
    }

    Overlaps out;
    const std::vector<Shared> pairs = table.sorted();
    for (const Shared& pair : pairs) {
        if (true_of(pair.key) != 0) append(out.truth, true_of(pair.key), pair);
    }
    std::vector<std::pair<std::int64_t, std::size_t>> by_pred;
    by_pred.reserve(pairs.size());
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        if (pred_of(pairs[i].key) != 0) by_pred.emplace_back(pred_of(pairs[i].key), i);
    }
    std::sort(by_pred.begin(), by_pred.end());
    std::vector<std::size_t> pred_rank(pairs.size(), 0);
    for (const auto& [id, i] : by_pred) {
        append(out.pred, id, pairs[i]);
        pred_rank[i] = out.pred.ids.size() - 1;
    }
    finish(out.truth);
    finish(out.pred);

    std::size_t true_rank = 0;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
        const std::int64_t t = true_of(pairs[i].key);
        const std::int64_t p = pred_of(pairs[i].key);
        if (t == 0 || p == 0) continue;
        while (out.truth.ids[true_rank] != t) ++true_rank;
        const std::int64_t both = pairs[i].pixels;
        const std::int64_t either = out.truth.areas[true_rank] + out.pred.areas[pred_rank[i]] - both;
        out.true_id.push_back(t);
        out.pred_id.push_back(p);
        out.count.push_back(both);
        out.iou.push_back(static_cast<double>(both) / static_cast<double>(either));
    }
    return out;
}

std::vector<std::int64_t> match_pairs(const std::int64_t* true_id, const std::int64_t* pred_id,
                                      const double* weight, std::ptrdiff_t count) {
    if (count > std::numeric_limits<Index>::max())
        throw std::invalid_argument("true_id: expected fewer than 2^31 pairs");
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        if (!(weight[i] > 0.0) || !std::isfinite(weight[i])) {
            throw std::invalid_argument("weight: expected finite values > 0, got " +
                                        std::to_string(weight[i]));
        }
    }
    std::vector<Index> row, col;
    const Index rows = to_ranks(true_id, count, row);
    const Index cols = to_ranks(pred_id, count, col);
    // The pairs of row r are by_row[first[r]] .. by_row[first[r + 1] - 1].
    std::vector<std::size_t> first(static_cast<std::size_t>(rows) + 1, 0);
    for (const Index r : row) ++first[static_cast<std::size_t>(r) + 1];
    for (std::size_t r = 1; r < first.size(); ++r) first[r] += first[r - 1];
    std::vector<std::size_t> by_row(row.size());
    std::vector<std::size_t> next(first.begin(), first.end() - 1);
    for (std::size_t i = 0; i < row.size(); ++i) by_row[next[static_cast<std::size_t>(row[i])]++] = i;

    const auto edges = [&](Index r, const auto& visit) {
        const auto begin = first[static_cast<std::size_t>(r)];
        const auto end = first[static_cast<std::size_t>(r) + 1];
        for (auto k = begin; k < end; ++k) visit(col[by_row[k]], -weight[by_row[k]]);
    };
    const std::vector<Index> col_of = assign(rows, cols, edges, 0.0);
    std::vector<std::int64_t> picked;
    for (std::size_t i = 0; i < row.size(); ++i) {
        if (col_of[static_cast<std::size_t>(row[i])] == col[i])
            picked.push_back(static_cast<std::int64_t>(i));
    }
    return picked;
}

std::vector<std::int64_t> match_points(Plane<const double> truth, Plane<const double> pred) {
    expect_finite(truth, "true");
    expect_finite(pred, "pred");
    const bool swapped = truth.rows > pred.rows;
    const Plane<const double> few = swapped ? pred : truth;
    const Plane<const double> many = swapped ? truth : pred;
    const auto cols = static_cast<Index>(many.rows);
    const auto edges = [&](Index r, const auto& visit) {
        const double y = few(r, 0);
        const double x = few(r, 1);
        for (Index c = 0; c < cols; ++c) {
            const double dy = many(c, 0) - y;
            const double dx = many(c, 1) - x;
            visit(c, std::sqrt(dy * dy + dx * dx));
        }
    };
    const std::vector<Index> col_of = assign(static_cast<Index>(few.rows), cols, edges, kInfinity);
    std::vector<std::int64_t> partner(static_cast<std::size_t>(truth.rows), -1);
    for (std::size_t r = 0; r < col_of.size(); ++r) {
        if (swapped) {
            partner[static_cast<std::size_t>(col_of[r])] = static_cast<std::int64_t>(r);
        } else {
            partner[r] = col_of[r];
        }
    }
    return partner;
}

}  // namespace nucfast
