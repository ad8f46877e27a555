#include "nucfast/overlap.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

#include "nucfast/dispatch.hpp"
#include "nucfast/parallel.hpp"

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

// Sums per pair, in the order in which pairs were first seen, so that those of a few image rows lie together.
// A pair is found by linear probing in a table of places, at most half full; but first where the pair was
// that an earlier row had in these columns.
class PairTable {
  public:
    explicit PairTable(std::ptrdiff_t cols)
        : places_(std::size_t{1} << (64 - shift_), kFree),
          recent_(static_cast<std::size_t>(cols / 4 + 1), 0) {
        pairs_.push_back({~Key{0}, 0, 0, 0});  // no pair, for `recent_` to start from: ids end at 2^31 - 1
    }

    void add(Key key, std::ptrdiff_t row, std::ptrdiff_t begin, std::ptrdiff_t end) {
        std::uint32_t& recent = recent_[static_cast<std::size_t>((begin + end) / 8)];
        if (pairs_[recent].key != key) recent = find(key);
        Shared& pair = pairs_[recent];
        const std::int64_t pixels = end - begin;
        pair.pixels += pixels;
        pair.rows += pixels * row;
        pair.cols += pixels * (begin + end - 1) / 2;
    }

    // The pairs, and an empty table.
    std::vector<Shared> take() {
        pairs_.erase(pairs_.begin());
        return std::move(pairs_);
    }

  private:
    static constexpr std::uint32_t kFree = 0;

    std::size_t place_of(Key key) const {
        // Fibonacci hashing: the high bits of the product are the well mixed ones.
        auto place = static_cast<std::size_t>((key * 0x9e3779b97f4a7c15u) >> shift_);
        while (places_[place] != kFree && pairs_[places_[place]].key != key) {
            place = (place + 1) & (places_.size() - 1);
        }
        return place;
    }

    std::uint32_t find(Key key) {
        std::size_t place = place_of(key);
        if (places_[place] == kFree) {
            if (2 * pairs_.size() > places_.size()) {
                grow();
                place = place_of(key);
            }
            if (pairs_.size() > std::numeric_limits<std::uint32_t>::max()) {
                throw std::length_error("true: expected fewer than 2^32 pairs of overlapping ids");
            }
            places_[place] = static_cast<std::uint32_t>(pairs_.size());
            pairs_.push_back({key, 0, 0, 0});
        }
        return places_[place];
    }

    void grow() {
        --shift_;
        places_.assign(places_.size() * 2, kFree);
        for (std::size_t i = 1; i < pairs_.size(); ++i) {
            places_[place_of(pairs_[i].key)] = static_cast<std::uint32_t>(i);
        }
    }

    int shift_ = 54;  // 64 - log2(places)
    std::vector<std::uint32_t> places_;
    std::vector<std::uint32_t> recent_;  // by column / 4
    std::vector<Shared> pairs_;
};

// Sorts by one half of the key, stably, byte by byte; bytes that are the same everywhere are skipped.
void sort_by_half(std::vector<Shared>& pairs, int first_bit, std::vector<Shared>& scratch) {
    Key any = 0;
    Key all = ~Key{0};
    for (const Shared& pair : pairs) {
        any |= pair.key;
        all &= pair.key;
    }
    scratch.resize(pairs.size());
    for (int bit = first_bit; bit < first_bit + 32; bit += 8) {
        if (((any ^ all) >> bit & 255U) == 0) continue;
        std::array<std::size_t, 257> next = {};
        for (const Shared& pair : pairs) ++next[(pair.key >> bit & 255U) + 1];
        for (std::size_t i = 1; i < next.size(); ++i) next[i] += next[i - 1];
        for (const Shared& pair : pairs) scratch[next[pair.key >> bit & 255U]++] = pair;
        pairs.swap(scratch);
    }
}

void expect_id(Label id, const char* name) {
    if (id < 0)
        throw std::invalid_argument(std::string(name) + ": expected ids >= 0, got " + std::to_string(id));
}

// changes[c] is 1 where a map differs from its pixel c - 1, else 0; changes[0] is left as it is.
NUCFAST_INLINE void find_changes_body(const Label* truth, const Label* pred, std::ptrdiff_t cols,
                                      std::uint8_t* changes) {
    for (std::ptrdiff_t c = 1; c < cols; ++c) {
        changes[c] = ((truth[c] ^ truth[c - 1]) | (pred[c] ^ pred[c - 1])) != 0;
    }
}
NUCFAST_VARIANTS(void, find_changes,
                 (const Label* truth, const Label* pred, std::ptrdiff_t cols, std::uint8_t* changes),
                 (truth, pred, cols, changes))

// Calls `body(begin, end)` for every run of one row in which neither map changes. `changes` is scratch of
// `scratch_size(cols)` zeroed bytes.
template <typename Body>
void for_each_run(const Label* truth, const Label* pred, std::ptrdiff_t cols, std::uint8_t* changes,
                  const Body& body) {
    find_changes(truth, pred, cols, changes);
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

// The pairs of rows [first, last), background excluded.
std::vector<Shared> count_rows(Plane<const Label> truth, Plane<const Label> pred, std::ptrdiff_t first,
                               std::ptrdiff_t last) {
    PairTable table(truth.cols);
    std::vector<std::uint8_t> changes(scratch_size(truth.cols));
    for (std::ptrdiff_t row = first; row < last; ++row) {
        const Label* const true_row = truth.row(row);
        const Label* const pred_row = pred.row(row);
        for_each_run(true_row, pred_row, truth.cols, changes.data(),
                     [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
                         const Label t = true_row[begin];
                         const Label p = pred_row[begin];
                         if ((t | p) == 0) return;
                         expect_id(t, "true");
                         expect_id(p, "pred");
                         table.add(key_of(t, p), row, begin, end);
                     });
    }
    return table.take();
}

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

Overlaps overlaps(Plane<const Label> truth, Plane<const Label> pred, int threads) {
    Overlaps out;
    if (truth.size() == 0) return out;
    std::vector<std::vector<Shared>> pieces(static_cast<std::size_t>(std::max(threads, 1)));
    parallel_for(truth.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int piece) {
        pieces[static_cast<std::size_t>(piece)] = count_rows(truth, pred, first, last);
    });
    std::vector<Shared> pairs = std::move(pieces[0]);
    for (std::size_t i = 1; i < pieces.size(); ++i) {
        pairs.insert(pairs.end(), pieces[i].begin(), pieces[i].end());
    }

    std::vector<Shared> scratch;
    sort_by_half(pairs, 0, scratch);
    for (Shared& pair : pairs) {
        if (pred_of(pair.key) == 0) continue;
        append(out.pred, pred_of(pair.key), pair);
        // From here on 1 + the rank of the pred id, which spares the search for its area.
        pair.key = key_of(static_cast<Label>(true_of(pair.key)), static_cast<Label>(out.pred.ids.size()));
    }
    sort_by_half(pairs, 32, scratch);
    std::size_t kept = 0;  // a pair that was seen by several threads is in the list as often
    for (const Shared& pair : pairs) {
        if (kept > 0 && pairs[kept - 1].key == pair.key) {
            pairs[kept - 1].pixels += pair.pixels;
            pairs[kept - 1].rows += pair.rows;
            pairs[kept - 1].cols += pair.cols;
        } else {
            pairs[kept++] = pair;
        }
    }
    pairs.resize(kept);
    for (const Shared& pair : pairs) {
        if (true_of(pair.key) != 0) append(out.truth, true_of(pair.key), pair);
    }
    finish(out.truth);
    finish(out.pred);

    std::size_t true_rank = 0;
    for (const Shared& pair : pairs) {
        const std::int64_t t = true_of(pair.key);
        const std::int64_t pred_rank = pred_of(pair.key) - 1;
        if (t == 0 || pred_rank < 0) continue;
        while (out.truth.ids[true_rank] != t) ++true_rank;
        const std::int64_t both = pair.pixels;
        const std::int64_t either = out.truth.areas[true_rank] + out.pred.areas[pred_rank] - both;
        out.true_id.push_back(t);
        out.pred_id.push_back(out.pred.ids[pred_rank]);
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

InstanceSums instance_sums(const ScoredPairs& pairs, const Areas& truth, const Areas& pred,
                           const std::vector<double>& thresholds) {
    InstanceSums sums;
    std::vector<std::int64_t> candidates;  // IoU >= 0.5
    for (std::ptrdiff_t i = 0; i < pairs.count; ++i) {
        if (pairs.iou[i] < 0.5) continue;
        candidates.push_back(i);
        if (pairs.iou[i] == 0.5) continue;
        ++sums.good;
        sums.good_iou += pairs.iou[i];
    }
    if (sums.good < static_cast<std::int64_t>(candidates.size())) {  // a nucleus may meet its exact halves
        std::vector<std::int64_t> true_id;
        std::vector<std::int64_t> pred_id;
        std::vector<double> weight;
        // All IoUs together weigh less than one pair more.
        const double most = static_cast<double>(2 * std::min(truth.count, pred.count));
        for (const std::int64_t i : candidates) {
            true_id.push_back(pairs.true_id[i]);
            pred_id.push_back(pairs.pred_id[i]);
            weight.push_back(1 + pairs.iou[i] / most);
        }
        const auto picked = match_pairs(true_id.data(), pred_id.data(), weight.data(),
                                        static_cast<std::ptrdiff_t>(weight.size()));
        for (std::size_t i = 0; i < picked.size(); ++i) candidates[i] = candidates[picked[i]];
        candidates.resize(picked.size());
    }
    sums.matched.assign(thresholds.size(), 0);
    for (const std::int64_t i : candidates) {
        sums.matched_iou += pairs.iou[i];
        for (std::size_t k = 0; k < thresholds.size(); ++k) sums.matched[k] += pairs.iou[i] >= thresholds[k];
    }

    const auto area_of = [](const Areas& of, std::int64_t id) {
        return std::lower_bound(of.ids, of.ids + of.count, id) - of.ids;
    };
    const auto aggregate = [&](const std::vector<std::int64_t>& picked, std::int64_t& shared,
                               std::int64_t& either) {
        std::vector<char> taken(static_cast<std::size_t>(pred.count), 0);
        for (std::ptrdiff_t i = 0; i < truth.count; ++i) either += truth.areas[i];
        for (std::ptrdiff_t i = 0; i < pred.count; ++i) either += pred.areas[i];
        for (const std::int64_t i : picked) {
            const auto rank = area_of(pred, pairs.pred_id[i]);
            shared += pairs.shared[i];
            // The union of the pair, less what is counted already.
            either += (taken[rank] != 0 ? pred.areas[rank] : 0) - pairs.shared[i];
            taken[rank] = 1;
        }
    };
    std::vector<std::int64_t> best;
    for (std::ptrdiff_t i = 0; i < pairs.count; ++i) {
        if (best.empty() || pairs.true_id[best.back()] != pairs.true_id[i]) {
            best.push_back(i);
        } else if (std::make_pair(pairs.iou[i], pairs.shared[i]) >
                   std::make_pair(pairs.iou[best.back()], pairs.shared[best.back()])) {
            best.back() = i;
        }
    }
    aggregate(best, sums.best_shared, sums.best_union);
    aggregate(match_pairs(pairs.true_id, pairs.pred_id, pairs.iou, pairs.count), sums.one_to_one_shared,
              sums.one_to_one_union);
    return sums;
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
