#include "nucfast/components.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "nucfast/bits.hpp"
#include "nucfast/dispatch.hpp"
#include "nucfast/parallel.hpp"

namespace nucfast {

namespace {

using Node = std::int32_t;  // of the union-find forest

constexpr Word kOne = 1;
constexpr std::ptrdiff_t kMaxCols = std::ptrdiff_t{1} << 30;
constexpr auto kMaxInt32 = std::numeric_limits<std::int32_t>::max();

void expect_columns(std::ptrdiff_t cols) {
    if (cols > kMaxCols) {
        throw std::length_error("image: expected at most 2^30 columns, got " + std::to_string(cols));
    }
}

// Not set to zero, so memory that stays unused costs nothing.
class Words {
  public:
    Words() = default;
    Words(std::ptrdiff_t rows, std::ptrdiff_t words)
        : words_(words), data_(new Word[static_cast<std::size_t>(rows * words)]) {}
    Word* row(std::ptrdiff_t r) { return data_.get() + r * words_; }
    const Word* row(std::ptrdiff_t r) const { return data_.get() + r * words_; }

  private:
    std::ptrdiff_t words_ = 0;
    std::unique_ptr<Word[]> data_;
};

// Columns of a row where a run meets one of its value in the row above. Each pair of runs that meet appears
// at least once; their pixels may touch in more places.
struct Links {
    explicit Links(std::ptrdiff_t words) : vertical(1, words), left(1, words), right(1, words) {}
    Words vertical;  // above
    Words left;      // above and one column to the left
    Words right;
    bool corners = false;  // whether there is any of the latter two
};

// Consecutive rows, labelled on their own. Rows are taken in bands of one or two.
struct Strip {
    std::ptrdiff_t first = 0;  // row
    std::ptrdiff_t last = 0;
    std::ptrdiff_t band_rows = 1;
    Words solid;                           // per row: pixels that are not zero
    Words start;                           // per band: where runs begin
    std::vector<std::ptrdiff_t> band_end;  // runs of the strip up to the end of each band
    std::vector<Node> node;                // per run
    std::vector<Node> parent;              // per node, never larger than its own index
    std::unique_ptr<Links> seam;           // of the first row with the row above the strip

    std::ptrdiff_t bands() const { return (last - first + band_rows - 1) / band_rows; }
    std::ptrdiff_t band_begin(std::ptrdiff_t band) const { return band > 0 ? band_end[band - 1] : 0; }
    std::vector<Node> band_nodes(std::ptrdiff_t band) const {
        return {node.begin() + band_begin(band), node.begin() + band_end[band]};
    }
};

// --- bits -----------------------------------------------------------------------------------------------

NUCFAST_INLINE int count_ones(Word word) {
    return __builtin_popcountll(word);
}

void solid_words(const std::uint8_t* row, std::ptrdiff_t cols, Word* solid) {
    const std::ptrdiff_t whole = cols / kBits;
    for (std::ptrdiff_t w = 0; w < whole; ++w) solid[w] = nonzero_bits(row + w * kBits);
    if (whole * kBits < cols) {
        std::uint8_t rest[kBits] = {};
        std::copy(row + whole * kBits, row + cols, rest);
        solid[whole] = nonzero_bits(rest);
    }
}

// Columns where a run of bits begins.
void start_words(const Word* solid, std::ptrdiff_t words, Word* start) {
    Word before = 0;
    for (std::ptrdiff_t w = 0; w < words; ++w) {
        start[w] = solid[w] & ~(solid[w] << 1 | before >> 63);
        before = solid[w];
    }
}

// Where the runs of a mask's row meet those of the row above. If pixel (r, c) and one diagonally above it are
// the only ones of their 2 x 2 pixels, they are a link of their own.
void mask_links(const Word* row, const Word* above, std::ptrdiff_t words, bool corners, Links& links) {
    Word* vertical = links.vertical.row(0);
    Word* left = links.left.row(0);
    Word* right = links.right.row(0);
    Word both_before = 0;
    Word upper_before = 0;
    Word any = 0;
    for (std::ptrdiff_t w = 0; w < words; ++w) {
        const Word both = row[w] & above[w];
        vertical[w] = both & ~(both << 1 | both_before >> 63);
        both_before = both;
        const Word upper = above[w] & ~row[w];
        const Word upper_next = w + 1 < words ? above[w + 1] & ~row[w + 1] : 0;
        const Word lower = corners ? row[w] & ~above[w] : 0;
        left[w] = lower & (upper << 1 | upper_before >> 63);
        right[w] = lower & (upper >> 1 | upper_next << 63);
        any |= left[w] | right[w];
        upper_before = upper;
    }
    links.corners = any != 0;
}

// --- bits of label maps: 64 comparisons at once -----------------------------------------------------------

struct EqualPlain {
    template <typename T>
    static Word bits(const T* a, const T* b) {
        std::uint8_t differs[kBits];
        for (int i = 0; i < kBits; ++i) differs[i] = a[i] != b[i];
        return ~nonzero_bits(differs);
    }
};

#if NUCFAST_X86
struct EqualAvx2 {
    NUCFAST_AVX2 static __m256i load(const void* p) {
        return _mm256_loadu_si256(static_cast<const __m256i*>(p));
    }
    NUCFAST_AVX2 static Word bits(const std::uint8_t* a, const std::uint8_t* b) {
        return word(_mm256_cmpeq_epi8(load(a), load(b)), _mm256_cmpeq_epi8(load(a + 32), load(b + 32)));
    }
    NUCFAST_AVX2 static Word bits(const std::uint16_t* a, const std::uint16_t* b) {
        __m256i part[4];
        for (int i = 0; i < 4; ++i) part[i] = _mm256_cmpeq_epi16(load(a + 16 * i), load(b + 16 * i));
        return word(in_order(_mm256_packs_epi16(part[0], part[1])),
                    in_order(_mm256_packs_epi16(part[2], part[3])));
    }
    NUCFAST_AVX2 static Word bits(const Label* a, const Label* b) {
        Word result = 0;
        for (int i = 0; i < 8; ++i) {
            const __m256i equal = _mm256_cmpeq_epi32(load(a + 8 * i), load(b + 8 * i));
            result |= static_cast<Word>(_mm256_movemask_ps(_mm256_castsi256_ps(equal))) << (8 * i);
        }
        return result;
    }

  private:
    NUCFAST_AVX2 static __m256i in_order(__m256i packed) { return _mm256_permute4x64_epi64(packed, 0xD8); }
    NUCFAST_AVX2 static Word word(__m256i low, __m256i high) {
        return static_cast<std::uint32_t>(_mm256_movemask_epi8(low)) |
               static_cast<Word>(static_cast<std::uint32_t>(_mm256_movemask_epi8(high))) << 32;
    }
};

struct EqualAvx512 {
    NUCFAST_AVX512 static Word bits(const std::uint8_t* a, const std::uint8_t* b) {
        return _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
    }
    NUCFAST_AVX512 static Word bits(const std::uint16_t* a, const std::uint16_t* b) {
        return _mm512_kunpackd(part(a + 32, b + 32), part(a, b));
    }
    NUCFAST_AVX512 static Word bits(const Label* a, const Label* b) {
        return _mm512_kunpackd(_mm512_kunpackw(part(a + 48, b + 48), part(a + 32, b + 32)),
                               _mm512_kunpackw(part(a + 16, b + 16), part(a, b)));
    }

  private:
    // Joined by unpacking, not as integers: GCC 12 may widen a mask to 64 bits with what lies beside it on
    // the stack.
    NUCFAST_AVX512 static __mmask32 part(const std::uint16_t* a, const std::uint16_t* b) {
        return _mm512_cmpeq_epi16_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
    }
    NUCFAST_AVX512 static __mmask16 part(const Label* a, const Label* b) {
        return _mm512_cmpeq_epi32_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
    }
};
#endif

// Copies a word's pixels with one more on either side, zeros where the row has none. Returns the first pixel.
template <typename T>
const T* copy_edge(const T* row, std::ptrdiff_t cols, std::ptrdiff_t w, T* copy) {
    const std::ptrdiff_t first = w * kBits - 1;
    const std::ptrdiff_t begin = std::max<std::ptrdiff_t>(first, 0);
    const std::ptrdiff_t end = std::min(first + kBits + 2, cols);
    std::fill(copy, copy + kBits + 2, T{0});
    std::copy(row + begin, row + end, copy + (begin - first));
    return copy + 1;
}

// The words of a label map's row, all at once.
template <typename Equal, typename T>
NUCFAST_INLINE void label_words_body(const T* row, const T* above, std::ptrdiff_t cols, bool corners,
                                     Word* solid, Word* start, Links& links) {
    alignas(64) static constexpr T zeros[kBits] = {};
    Word* vertical = links.vertical.row(0);
    Word* left = links.left.row(0);
    Word* right = links.right.row(0);
    Word both_before = 0;
    Word any = 0;
    for (std::ptrdiff_t w = 0; w * kBits < cols; ++w) {
        const T* here = row + w * kBits;
        const T* up = above + w * kBits;
        T here_edge[kBits + 2];
        T up_edge[kBits + 2];
        if (w == 0 || (w + 1) * kBits >= cols) {
            here = copy_edge(row, cols, w, here_edge);
            up = copy_edge(above, cols, w, up_edge);
        }
        // All loads before the first store, which keeps what they share in registers.
        const Word present = ~Equal::bits(here, zeros);
        const Word same_left = Equal::bits(here, here - 1);
        const Word both = Equal::bits(here, up) & present;
        Word corner_left = 0;
        Word corner_right = 0;
        if (corners && (present & ~both) != 0) {
            // As in a mask: a corner counts where neither pixel has its own value beside or above it.
            const Word same_right = same_left >> 1 | static_cast<Word>(here[kBits] == here[kBits - 1]) << 63;
            corner_left = present & ~both & ~same_left & Equal::bits(here, up - 1);
            corner_right = present & ~both & ~same_right & Equal::bits(here, up + 1);
        }
        solid[w] = present;
        start[w] = present & ~same_left;
        vertical[w] = both & ~((both << 1 | both_before >> 63) & same_left);
        left[w] = corner_left;
        right[w] = corner_right;
        both_before = both;
        any |= corner_left | corner_right;
    }
    links.corners = any != 0;
}

template <typename T>
void label_words_plain(const T* row, const T* above, std::ptrdiff_t cols, bool corners, Word* solid,
                       Word* start, Links& links) {
    label_words_body<EqualPlain>(row, above, cols, corners, solid, start, links);
}

#if NUCFAST_X86
template <typename T>
NUCFAST_AVX2 void label_words_avx2(const T* row, const T* above, std::ptrdiff_t cols, bool corners,
                                   Word* solid, Word* start, Links& links) {
    label_words_body<EqualAvx2>(row, above, cols, corners, solid, start, links);
}

template <typename T>
NUCFAST_AVX512 void label_words_avx512(const T* row, const T* above, std::ptrdiff_t cols, bool corners,
                                       Word* solid, Word* start, Links& links) {
    label_words_body<EqualAvx512>(row, above, cols, corners, solid, start, links);
}
#endif

template <typename T>
void label_words(const T* row, const T* above, std::ptrdiff_t cols, bool corners, Word* solid, Word* start,
                 Links& links) {
#if NUCFAST_X86
    switch (isa()) {
        case Isa::avx512:
            return label_words_avx512(row, above, cols, corners, solid, start, links);
        case Isa::avx2:
            return label_words_avx2(row, above, cols, corners, solid, start, links);
        default:
            break;
    }
#endif
    label_words_plain(row, above, cols, corners, solid, start, links);
}

// --- the forest -----------------------------------------------------------------------------------------

NUCFAST_INLINE Node find(Node* parent, Node i) {
    while (parent[i] != i) i = parent[i] = parent[parent[i]];
    return i;
}

// Makes one tree of two nodes' trees, whose root is the smaller root.
NUCFAST_INLINE void unite(Node* parent, Node a, Node b) {
    a = find(parent, a);
    b = find(parent, b);
    if (a < b) {
        parent[b] = a;
    } else {
        parent[a] = b;
    }
}

// Returns the number of bits; `before` gets, per word, that of the words before it.
NUCFAST_INLINE std::ptrdiff_t count_bits_body(const Word* row, std::ptrdiff_t words, std::int32_t* before) {
    std::int32_t count = 0;
    for (std::ptrdiff_t w = 0; w < words; ++w) {
        before[w] = count;
        count += count_ones(row[w]);
    }
    return count;
}
NUCFAST_VARIANTS(std::ptrdiff_t, count_bits, (const Word* row, std::ptrdiff_t words, std::int32_t* before),
                 (row, words, before))

// Tells which run of a band a column is in, by the number of starts up to it.
class Ranks {
  public:
    explicit Ranks(std::ptrdiff_t words) : before_(static_cast<std::size_t>(words)) {}

    // Returns the number of runs.
    std::ptrdiff_t read(const Word* start) {
        start_ = start;
        return count_bits(start, static_cast<std::ptrdiff_t>(before_.size()), before_.data());
    }
    NUCFAST_INLINE std::ptrdiff_t run_at(std::ptrdiff_t column) const {
        const std::ptrdiff_t w = column / kBits;
        return before_[w] + count_ones(start_[w] << (kBits - 1 - column % kBits)) - 1;
    }

  private:
    const Word* start_ = nullptr;
    std::vector<std::int32_t> before_;
};

// Lists the columns whose bits are set and returns how many they are. May write kListSlack columns more.
constexpr std::ptrdiff_t kListSlack = 8;

NUCFAST_INLINE std::ptrdiff_t list_bits_body(const Word* row, std::ptrdiff_t words, std::int32_t* columns) {
    std::ptrdiff_t count = 0;
    for (std::ptrdiff_t w = 0; w < words; ++w) {
        Word rest = row[w];
        const auto column = static_cast<std::int32_t>(w * kBits);
        const int here = count_ones(rest);
        // Always eight, whether there are or not: how many there are is hard to predict.
        for (int k = 0; k < kListSlack; ++k, rest &= rest - 1) {
            columns[count + k] = column + count_zeros(rest | kOne << 63);
        }
        for (auto k = kListSlack; k < here; ++k, rest &= rest - 1) {
            columns[count + k] = column + count_zeros(rest);
        }
        count += here;
    }
    return count;
}
NUCFAST_VARIANTS(std::ptrdiff_t, list_bits, (const Word* row, std::ptrdiff_t words, std::int32_t* columns),
                 (row, words, columns))

// Gives each run of a band that meets others their node; the others keep -1. `columns` is scratch.
NUCFAST_INLINE void join_band_body(const Links& links, std::ptrdiff_t words, const Ranks& above,
                                   const Ranks& below, const Node* above_node, Node* node, Node* parent,
                                   std::int32_t* columns) {
    const auto join = [&](const Words& kind, std::ptrdiff_t shift) {
        const std::ptrdiff_t count = list_bits_body(kind.row(0), words, columns);
        for (std::ptrdiff_t i = 0; i < count; ++i) {
            const Node a = above_node[above.run_at(columns[i] + shift)];
            Node& b = node[below.run_at(columns[i])];
            if (b < 0) {
                b = a;
            } else if (a != b) {
                unite(parent, a, b);
            }
        }
    };
    join(links.vertical, 0);
    if (links.corners) {
        join(links.left, -1);
        join(links.right, 1);
    }
}
NUCFAST_VARIANTS(void, join_band,
                 (const Links& links, std::ptrdiff_t words, const Ranks& above, const Ranks& below,
                  const Node* above_node, Node* node, Node* parent, std::int32_t* columns),
                 (links, words, above, below, above_node, node, parent, columns))

// Whether the run that begins at `column` has a pixel in the upper of its two rows.
bool in_upper_row(const Word* upper, const Word* lower, std::ptrdiff_t words, std::ptrdiff_t column) {
    int bit = static_cast<int>(column % kBits);
    for (std::ptrdiff_t w = column / kBits; w < words; ++w, bit = 0) {
        const Word gaps = ~(upper[w] | lower[w]) >> bit;
        const Word run = gaps != 0 ? (gaps & (~gaps + 1)) - 1 : ~Word{0} >> bit;
        if ((upper[w] >> bit & run) != 0) return true;
        if (gaps != 0) return false;
    }
    return false;
}

// Labels the rows of a strip, band by band.
class StripPass {
  public:
    StripPass(Strip& strip, std::ptrdiff_t words)
        : strip_(strip),
          words_(words),
          links_(words),
          above_(words),
          below_(words),
          columns_(static_cast<std::size_t>(words * kBits + kListSlack)),
          new_runs_(static_cast<std::size_t>(words * kBits + 1)) {
        strip.solid = Words(strip.last - strip.first, words);
        strip.start = Words(strip.bands(), words);
        strip.band_end.reserve(static_cast<std::size_t>(strip.bands()));
    }

    Links& links() { return links_; }

    // Counts the runs of the next band, whose words are there, and joins them with those of the band above
    // along `links()`.
    void add_band() {
        const auto band = static_cast<std::ptrdiff_t>(strip_.band_end.size());
        std::swap(above_, below_);
        const std::ptrdiff_t begin = strip_.band_begin(band);
        const std::ptrdiff_t end = begin + below_.read(strip_.start.row(band));
        reserve(band, end);
        strip_.node.resize(static_cast<std::size_t>(end), -1);
        Node* node = strip_.node.data() + begin;
        if (band > 0) {
            join_band(links_, words_, above_, below_, strip_.node.data() + strip_.band_begin(band - 1), node,
                      strip_.parent.data(), columns_.data());
        }
        std::ptrdiff_t count = 0;
        for (std::ptrdiff_t i = 0; i < end - begin;
             ++i) {  // no branch: which runs are new is hard to predict
            new_runs_[count] = static_cast<std::int32_t>(i);
            count += node[i] < 0;
        }
        if (strip_.band_rows == 2) count = name_upper_runs(band, count, node);
        for (std::ptrdiff_t i = 0; i < count; ++i) node[new_runs_[i]] = new_node();
        strip_.band_end.push_back(end);
    }

  private:
    // Grows memory to what the whole strip will need if it goes on like this.
    void reserve(std::ptrdiff_t band, std::ptrdiff_t runs) {
        if (static_cast<std::size_t>(runs) <= strip_.node.capacity()) return;
        const std::ptrdiff_t expected = runs / (band + 1) * strip_.bands();
        strip_.node.reserve(static_cast<std::size_t>(std::max(runs + runs / 2, expected + expected / 8)));
    }

    // Of the first `count` new runs, those with a pixel in the upper row come first in raster order. Gives
    // them their nodes and returns how many are left in `new_runs_`.
    std::ptrdiff_t name_upper_runs(std::ptrdiff_t band, std::ptrdiff_t count, Node* node) {
        const Word* upper = strip_.solid.row(2 * band);
        const bool single = strip_.first + 2 * band + 1 == strip_.last;
        const Word* lower = single ? upper : strip_.solid.row(2 * band + 1);
        if (count > 0) list_bits(strip_.start.row(band), words_, columns_.data());
        std::ptrdiff_t left = 0;
        for (std::ptrdiff_t i = 0; i < count; ++i) {
            if (in_upper_row(upper, lower, words_, columns_[new_runs_[i]])) {
                node[new_runs_[i]] = new_node();
            } else {
                new_runs_[left++] = new_runs_[i];
            }
        }
        return left;
    }

    Node new_node() {
        if (strip_.parent.size() >= static_cast<std::size_t>(kMaxInt32)) {
            throw std::length_error("image: expected fewer than 2^31 components");
        }
        const auto node = static_cast<Node>(strip_.parent.size());
        strip_.parent.push_back(node);
        return node;
    }

    Strip& strip_;
    std::ptrdiff_t words_;
    Links links_;
    Ranks above_;
    Ranks below_;
    std::vector<std::int32_t> columns_;
    std::vector<std::int32_t> new_runs_;  // runs of the band that meet none above
};

void label_strip(Plane<const bool> image, bool corners, Strip& strip) {
    const std::ptrdiff_t words = (image.cols + kBits - 1) / kBits;
    StripPass pass(strip, words);
    const auto read = [&](std::ptrdiff_t r, Word* solid) {
        // NumPy's bool may hold any byte; reading such a byte as C++ bool is undefined.
        solid_words(reinterpret_cast<const std::uint8_t*>(image.row(r)), image.cols, solid);
    };
    std::vector<Word> either(static_cast<std::size_t>(words));
    for (auto r = strip.first; r < strip.last; r += strip.band_rows) {
        const std::ptrdiff_t i = r - strip.first;
        read(r, strip.solid.row(i));
        Word* start = strip.start.row(i / strip.band_rows);
        if (strip.band_rows == 2 && r + 1 < strip.last) {
            read(r + 1, strip.solid.row(i + 1));
            for (std::ptrdiff_t w = 0; w < words; ++w) {
                either[w] = strip.solid.row(i)[w] | strip.solid.row(i + 1)[w];
            }
            start_words(either.data(), words, start);
        } else {
            start_words(strip.solid.row(i), words, start);
        }
        if (i > 0) {
            mask_links(strip.solid.row(i), strip.solid.row(i - 1), words, corners, pass.links());
        } else if (r > 0) {
            read(r - 1, either.data());
            strip.seam = std::make_unique<Links>(words);
            mask_links(strip.solid.row(i), either.data(), words, corners, *strip.seam);
        }
        pass.add_band();
    }
}

template <typename T>
void label_strip(Plane<const T> image, bool corners, Strip& strip) {
    const std::ptrdiff_t words = (image.cols + kBits - 1) / kBits;
    StripPass pass(strip, words);
    const std::vector<T> nothing(static_cast<std::size_t>(image.cols), 0);
    for (auto r = strip.first; r < strip.last; ++r) {
        const std::ptrdiff_t i = r - strip.first;
        if (i == 0) strip.seam = std::make_unique<Links>(words);
        label_words(image.row(r), r > 0 ? image.row(r - 1) : nothing.data(), image.cols, corners,
                    strip.solid.row(i), strip.start.row(i), i > 0 ? pass.links() : *strip.seam);
        pass.add_band();
    }
}

// What remains of all strips: the number of each of their nodes.
struct Numbers {
    std::vector<Label> of_node;              // those of the first strip, then those of the next, ...
    std::vector<std::ptrdiff_t> first_node;  // of each strip
    Label count = 0;
};

Numbers join_strips(const std::vector<Strip>& strips, std::ptrdiff_t words) {
    Numbers numbers;
    std::vector<Node>& parent = numbers.of_node;
    std::vector<std::int32_t> columns(static_cast<std::size_t>(words * kBits + kListSlack));
    const Strip* upper = nullptr;
    for (const Strip& strip : strips) {
        const std::size_t base = parent.size();
        numbers.first_node.push_back(static_cast<std::ptrdiff_t>(base));
        if (strip.bands() == 0) continue;
        if (base + strip.parent.size() > static_cast<std::size_t>(kMaxInt32)) {
            throw std::length_error("image: expected fewer than 2^31 components");
        }
        for (const Node p : strip.parent) parent.push_back(static_cast<Node>(base) + p);
        if (upper != nullptr) {
            // Each run of the row below already has a node: this unites it with those above.
            const auto above_base = static_cast<Node>(base - upper->parent.size());
            std::vector<Node> above_node = upper->band_nodes(upper->bands() - 1);
            std::vector<Node> node = strip.band_nodes(0);
            for (Node& n : above_node) n += above_base;
            for (Node& n : node) n += static_cast<Node>(base);
            Ranks above(words);
            Ranks below(words);
            above.read(upper->start.row(upper->bands() - 1));
            below.read(strip.start.row(0));
            join_band(*strip.seam, words, above, below, above_node.data(), node.data(), parent.data(),
                      columns.data());
        }
        upper = &strip;
    }
    // A parent comes before its child, so one pass in order both numbers the roots and flattens the trees.
    for (std::size_t i = 0; i < parent.size(); ++i) {
        parent[i] = parent[i] == static_cast<Node>(i) ? ++numbers.count : parent[parent[i]];
    }
    return numbers;
}

template <typename T>
std::vector<Strip> label_strips(Plane<const T> image, int connectivity, int threads,
                                std::ptrdiff_t band_rows) {
    if (connectivity != 4 && connectivity != 8) {
        throw std::invalid_argument("connectivity: expected 4 or 8, got " + std::to_string(connectivity));
    }
    expect_columns(image.cols);
    std::vector<Strip> strips(static_cast<std::size_t>(threads));
    parallel_for(image.rows, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int piece) {
        Strip& strip = strips[static_cast<std::size_t>(piece)];
        strip.first = first;
        strip.last = last;
        strip.band_rows = band_rows;
        label_strip(image, connectivity == 8, strip);
    });
    return strips;
}

// --- painting -------------------------------------------------------------------------------------------

// Fills `line` with each run's number, from where the run begins to where the next one does. May write kStep
// columns past the end.
constexpr std::ptrdiff_t kStep = 32;

NUCFAST_INLINE void fill_line_body(const std::int32_t* begins, std::ptrdiff_t count, std::ptrdiff_t cols,
                                   const Node* node, const Label* numbers, Label* line) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const Label number = numbers[node[i]];
        std::ptrdiff_t c = begins[i];
        const std::ptrdiff_t end = i + 1 < count ? begins[i + 1] : cols;
        do {  // in whole steps, which the next run writes over
            for (std::ptrdiff_t k = 0; k < kStep; ++k) line[c + k] = number;
            c += kStep;
        } while (c < end);
    }
}
NUCFAST_VARIANTS(void, fill_line,
                 (const std::int32_t* begins, std::ptrdiff_t count, std::ptrdiff_t cols, const Node* node,
                  const Label* numbers, Label* line),
                 (begins, count, cols, node, numbers, line))

// out[c] = bit c of `solid` ? line[c] : 0, for the columns of whole words; paint_row does the rest.
#if NUCFAST_X86
void paint_words_sse2(const Word* solid, std::ptrdiff_t words, const Label* line, Label* out) {
    const __m128i bits = _mm_setr_epi32(1, 2, 4, 8);
    for (std::ptrdiff_t w = 0; w < words; ++w) {
        Word rest = solid[w];
        for (int k = 0; k < 16; ++k, rest >>= 4, line += 4, out += 4) {
            const __m128i set = _mm_and_si128(_mm_set1_epi32(static_cast<int>(rest)), bits);
            const __m128i label = _mm_loadu_si128(reinterpret_cast<const __m128i*>(line));
            const __m128i painted = _mm_and_si128(_mm_cmpeq_epi32(set, bits), label);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out), painted);
        }
    }
}

NUCFAST_AVX2 void paint_words_avx2(const Word* solid, std::ptrdiff_t words, const Label* line, Label* out) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    for (std::ptrdiff_t w = 0; w < words; ++w) {
        Word rest = solid[w];
        for (int k = 0; k < 8; ++k, rest >>= 8, line += 8, out += 8) {
            const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(rest)), bits);
            const __m256i label = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
            const __m256i painted = _mm256_and_si256(_mm256_cmpeq_epi32(set, bits), label);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), painted);
        }
    }
}

NUCFAST_AVX512 void paint_words_avx512(const Word* solid, std::ptrdiff_t words, const Label* line,
                                       Label* out) {
    for (std::ptrdiff_t w = 0; w < words; ++w) {
        Word rest = solid[w];
        for (int k = 0; k < 4; ++k, rest >>= 16, line += 16, out += 16) {
            _mm512_storeu_si512(out, _mm512_maskz_loadu_epi32(static_cast<__mmask16>(rest), line));
        }
    }
}
#endif

void paint_row(const Word* solid, std::ptrdiff_t cols, const Label* line, Label* out) {
    std::ptrdiff_t c = 0;
#if NUCFAST_X86
    const std::ptrdiff_t words = cols / kBits;
    switch (isa()) {
        case Isa::avx512:
            paint_words_avx512(solid, words, line, out);
            break;
        case Isa::avx2:
            paint_words_avx2(solid, words, line, out);
            break;
        default:
            paint_words_sse2(solid, words, line, out);
    }
    c = words * kBits;
#endif
    for (; c < cols; ++c) out[c] = line[c] & -static_cast<Label>(solid[c / kBits] >> (c % kBits) & kOne);
}

void paint_strip(const Strip& strip, const Label* numbers, Plane<Label> out) {
    const std::ptrdiff_t words = (out.cols + kBits - 1) / kBits;
    std::vector<Label> line(static_cast<std::size_t>(out.cols + kStep));
    std::vector<std::int32_t> begins(static_cast<std::size_t>(out.cols + kListSlack));
    for (std::ptrdiff_t band = 0; band < strip.bands(); ++band) {
        const std::ptrdiff_t count = list_bits(strip.start.row(band), words, begins.data());
        fill_line(begins.data(), count, out.cols, strip.node.data() + strip.band_begin(band), numbers,
                  line.data());
        const auto first = strip.first + band * strip.band_rows;
        for (auto r = first; r < std::min(first + strip.band_rows, strip.last); ++r) {
            paint_row(strip.solid.row(r - strip.first), out.cols, line.data(), out.row(r));
        }
    }
}

// Appends the runs of one row to `found`, and where the next row begins.
void append_row(const Word* solid, const Word* start, std::ptrdiff_t cols, Runs& found) {
    const std::ptrdiff_t words = (cols + kBits - 1) / kBits;
    std::vector<Run>& runs = found.runs;
    auto next = static_cast<std::ptrdiff_t>(runs.size());  // whose end is met next
    Word before = 0;
    for (std::ptrdiff_t w = 0; w < words; ++w) {
        for (Word rest = start[w]; rest != 0; rest &= rest - 1) {
            const auto c = static_cast<std::int32_t>(w * kBits + count_zeros(rest));
            runs.push_back({c, static_cast<std::int32_t>(cols)});
        }
        // A run ends where one more pixel would be zero or the start of another run.
        Word ends = (solid[w] << 1 | before >> 63) & ~(solid[w] & ~start[w]);
        for (; ends != 0; ends &= ends - 1) {
            runs[next++].end = static_cast<std::int32_t>(w * kBits + count_zeros(ends));
        }
        before = solid[w];
    }
    found.row_begin.push_back(static_cast<std::ptrdiff_t>(runs.size()));
}

NUCFAST_INLINE void at_least_body(const std::uint8_t* values, std::ptrdiff_t count, int lowest,
                                  std::uint8_t* inside) {
    for (std::ptrdiff_t i = 0; i < count; ++i) inside[i] = static_cast<std::uint8_t>(values[i] >= lowest);
}
NUCFAST_VARIANTS(void, at_least,
                 (const std::uint8_t* values, std::ptrdiff_t count, int lowest, std::uint8_t* inside),
                 (values, count, lowest, inside))

}  // namespace

Runs mask_runs(Plane<const std::uint8_t> values, int lowest) {
    expect_columns(values.cols);
    const std::ptrdiff_t words =
        values.cols / kBits + 1;  // at least one column more: there the last run ends
    Words start(1, words);
    Words end(1, words);
    const auto columns = static_cast<std::size_t>(words * kBits);
    std::vector<std::uint8_t> inside(columns);
    std::vector<std::int32_t> begins(columns + kListSlack);
    std::vector<std::int32_t> ends(columns + kListSlack);
    Runs found;
    found.row_begin.reserve(static_cast<std::size_t>(values.rows) + 1);
    found.row_begin.push_back(0);
    for (std::ptrdiff_t r = 0; r < values.rows; ++r) {
        at_least(values.row(r), values.cols, lowest, inside.data());
        Word before = 0;
        for (std::ptrdiff_t w = 0; w < words; ++w) {
            const Word solid = nonzero_bits(inside.data() + w * kBits);
            const Word shifted = solid << 1 | before >> (kBits - 1);
            start.row(0)[w] = solid & ~shifted;
            end.row(0)[w] = shifted & ~solid;
            before = solid;
        }
        const std::ptrdiff_t count = list_bits(start.row(0), words, begins.data());
        list_bits(end.row(0), words, ends.data());
        for (std::ptrdiff_t i = 0; i < count; ++i) found.runs.push_back({begins[i], ends[i]});
        found.row_begin.push_back(static_cast<std::ptrdiff_t>(found.runs.size()));
    }
    return found;
}

template <typename T>
RunComponents run_components(Plane<const T> image, int connectivity, int threads) {
    const std::vector<Strip> strips = label_strips(image, connectivity, std::max(threads, 1), 1);
    const Numbers numbers = join_strips(strips, (image.cols + kBits - 1) / kBits);
    RunComponents result;
    result.count = numbers.count;
    result.row_begin.reserve(static_cast<std::size_t>(image.rows) + 1);
    result.row_begin.push_back(0);
    std::size_t count = 0;
    for (const Strip& strip : strips) count += strip.node.size();
    result.runs.reserve(count);
    result.labels.reserve(count);
    for (std::size_t s = 0; s < strips.size(); ++s) {
        const Strip& strip = strips[s];
        for (std::ptrdiff_t row = 0; row < strip.last - strip.first; ++row) {
            append_row(strip.solid.row(row), strip.start.row(row), image.cols, result);
        }
        const Label* of_node = numbers.of_node.data() + numbers.first_node[s];
        for (const Node node : strip.node) result.labels.push_back(of_node[node]);
    }
    return result;
}

template <typename T>
Label label_components(Plane<const T> image, int connectivity, int threads, Plane<Label> out) {
    threads = std::max(threads, 1);
    const std::ptrdiff_t band_rows = std::is_same_v<T, bool> && connectivity == 8 ? 2 : 1;
    const std::vector<Strip> strips = label_strips(image, connectivity, threads, band_rows);
    const Numbers numbers = join_strips(strips, (image.cols + kBits - 1) / kBits);
    parallel_for(static_cast<std::ptrdiff_t>(strips.size()), threads,
                 [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
                     for (auto s = first; s < last; ++s) {
                         paint_strip(strips[s], numbers.of_node.data() + numbers.first_node[s], out);
                     }
                 });
    return numbers.count;
}

template RunComponents run_components(Plane<const bool>, int, int);
template RunComponents run_components(Plane<const Label>, int, int);
template Label label_components(Plane<const bool>, int, int, Plane<Label>);
template Label label_components(Plane<const std::uint8_t>, int, int, Plane<Label>);
template Label label_components(Plane<const std::uint16_t>, int, int, Plane<Label>);
template Label label_components(Plane<const Label>, int, int, Plane<Label>);

}  // namespace nucfast
