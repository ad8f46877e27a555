#include "nucfast/stain.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "nucfast/dispatch.hpp"
#include "nucfast/parallel.hpp"

namespace nucfast {
namespace {

constexpr double white = 240;         // light without tissue, as a value plus one
constexpr double min_density = 0.15;  // of tissue
constexpr int bins = 1 << 16;
constexpr std::ptrdiff_t block = 1 << 12;  // pixels worked on at once; their buffers stay in the L1 cache
constexpr double min_sine = 0.0523;        // of the angle between two stains: 3 degrees

using Vector = std::array<double, 3>;

double dot(const Vector& a, const Vector& b) {
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

Vector cross(const Vector& a, const Vector& b) {
    return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}

Vector unit(const Vector& a) {
    const double length = std::sqrt(dot(a, a));
    return {a[0] / length, a[1] / length, a[2] / length};
}

const std::array<double, 256>& densities() {
    static const std::array<double, 256> table = [] {
        std::array<double, 256> values{};
        for (int v = 0; v < 256; ++v) values[v] = -std::log((v + 1) / white);
        return values;
    }();
    return table;
}

// The brightest value of a channel that is tissue.
int brightest_tissue() {
    int v = 255;
    while (densities()[v] < min_density) --v;
    return v;
}

// Up to four numbers per pixel that are linear in its densities: the sum of one entry per channel.
struct Table {
    alignas(16) float entries[3][256][4] = {};

    // Sets number `k` to offset + scale * (weights . densities).
    void set(int k, const Vector& weights, double scale = 1, double offset = 0) {
        for (int channel = 0; channel < 3; ++channel) {
            for (int v = 0; v < 256; ++v) {
                const double share = scale * weights[channel] * densities()[v];
                entries[channel][v][k] = static_cast<float>(share + (channel == 0 ? offset : 0));
            }
        }
    }
};

inline void look_up_one(const std::uint8_t* pixel, const Table& table, float* out) {
    const float* red = table.entries[0][pixel[0]];
    const float* green = table.entries[1][pixel[1]];
    const float* blue = table.entries[2][pixel[2]];
    float sums[4];
    for (int k = 0; k < 4; ++k) sums[k] = red[k] + green[k] + blue[k];
    std::memcpy(out, sums, sizeof(sums));
}

// Writes `numbers` numbers of each pixel one after another. Four are written each time and the next pixel's
// overwrite those not asked for, so `out` has room for three more at its end.
template <int numbers>
void look_up(const std::uint8_t* pixels, std::ptrdiff_t count, const Table& table, float* out) {
    for (std::ptrdiff_t i = 0; i < count; ++i) look_up_one(pixels + 3 * i, table, out + numbers * i);
}

// The same for tissue alone. Returns the number of its pixels.
template <int numbers>
std::ptrdiff_t look_up_tissue(const std::uint8_t* pixels, std::ptrdiff_t count, int brightest,
                              const Table& table, float* out) {
    float* end = out;
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const std::uint8_t* pixel = pixels + 3 * i;
        look_up_one(pixel, table, end);
        const bool tissue = (pixel[0] <= brightest) & (pixel[1] <= brightest) & (pixel[2] <= brightest);
        end += numbers * static_cast<std::ptrdiff_t>(tissue);
    }
    return (end - out) / numbers;
}

constexpr int lanes = 16;  // of sums, whatever the instruction set: each gives the same

// Sums of r, g, b, rr, rg, rb, gg, gb, bb over triples of r, g, b, whose count is a multiple of `lanes`.
NUCFAST_INLINE void add_moments_body(const float* values, std::ptrdiff_t count, float (*totals)[lanes]) {
    float kept[9][lanes] = {};
    for (std::ptrdiff_t i = 0; i < count; i += lanes) {
        for (int k = 0; k < lanes; ++k) {
            const float r = values[3 * (i + k)];
            const float g = values[3 * (i + k) + 1];
            const float b = values[3 * (i + k) + 2];
            kept[0][k] += r;
            kept[1][k] += g;
            kept[2][k] += b;
            kept[3][k] += r * r;
            kept[4][k] += r * g;
            kept[5][k] += r * b;
            kept[6][k] += g * g;
            kept[7][k] += g * b;
            kept[8][k] += b * b;
        }
    }
    std::memcpy(totals, kept, sizeof(kept));
}
NUCFAST_VARIANTS(void, add_moments, (const float* values, std::ptrdiff_t count, float (*totals)[lanes]),
                 (values, count, totals))

// The bin of the direction of each pair (s, t), from -pi at bin 0 to pi.
NUCFAST_INLINE void angle_bins_body(const float* pairs, std::ptrdiff_t count, std::int32_t* found) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const float s = pairs[2 * i];
        const float t = pairs[2 * i + 1];
        const float length = std::fabs(s) + std::fabs(t);
        const float slope = t / (length > 0 ? length : 1.0F);
        const float behind = t >= 0 ? 2 - slope : -2 - slope;
        const float turn = s >= 0 ? slope : behind;  // -2..2
        const auto bin = static_cast<std::int32_t>((turn + 2) * static_cast<float>(bins / 4));
        found[i] = bin < bins ? bin : bins - 1;
    }
}
NUCFAST_VARIANTS(void, angle_bins, (const float* pairs, std::ptrdiff_t count, std::int32_t* found),
                 (pairs, count, found))

// 2^x rounded down and at most 255; x is at most 127. Relative error below 1e-7 before rounding.
NUCFAST_INLINE void power_of_two_body(const float* exponents, std::ptrdiff_t count, std::uint8_t* out) {
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const float above = exponents[i] > -1 ? exponents[i] + 1 : 0.0F;
        const float x = above < 9 ? above : 9.0F;
        const auto whole = static_cast<std::int32_t>(x);
        const float f = x - static_cast<float>(whole);
        float power = 0.00187757643F;
        power = power * f + 0.00898934069F;
        power = power * f + 0.0558263176F;
        power = power * f + 0.240153617F;
        power = power * f + 0.693153073F;
        power = power * f + 0.999999925F;
        const std::int32_t bits = (whole + 126) << 23;
        float scale;
        std::memcpy(&scale, &bits, sizeof(scale));
        const auto value = static_cast<std::int32_t>(power * scale);
        out[i] = static_cast<std::uint8_t>(value < 255 ? value : 255);
    }
}
NUCFAST_VARIANTS(void, power_of_two, (const float* exponents, std::ptrdiff_t count, std::uint8_t* out),
                 (exponents, count, out))

using Histogram = std::vector<std::int64_t>;

// The value, in bins, that a share of all values does not exceed: nearest rank, linear inside the bin.
double percentile(const Histogram& histogram, double share) {
    std::int64_t total = 0;
    for (const std::int64_t count : histogram) total += count;
    const auto rank = static_cast<std::int64_t>(std::nearbyint(share * static_cast<double>(total - 1)));
    std::int64_t before = 0;
    std::size_t bin = 0;
    while (before + histogram[bin] <= rank) before += histogram[bin++];
    return static_cast<double>(bin) +
           (static_cast<double>(rank - before) + 0.5) / static_cast<double>(histogram[bin]);
}

void expect_rgb(Image<const std::uint8_t> image) {
    if (image.channels != 3) {
        throw std::invalid_argument("image: expected 3 channels, got " + std::to_string(image.channels));
    }
}

// Counts of what `fill(pixels, count, histograms)` counts, over all threads.
template <int number, typename Fill>
std::array<Histogram, number> count_blocks(Image<const std::uint8_t> image, int threads, const Fill& fill) {
    std::array<Histogram, number> totals;
    for (auto& total : totals) total.resize(bins);
    std::mutex mutex;
    const std::ptrdiff_t pixels = image.rows * image.cols;
    parallel_for((pixels + block - 1) / block, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        std::array<Histogram, number> counts;
        for (auto& count : counts) count.resize(bins);
        std::vector<float> numbers(2 * block + 4);
        for (std::ptrdiff_t i = first; i < last; ++i) {
            fill(image.data + 3 * i * block, std::min(block, pixels - i * block), numbers.data(), counts);
        }
        const std::lock_guard<std::mutex> lock(mutex);
        for (int k = 0; k < number; ++k) {
            for (int bin = 0; bin < bins; ++bin) totals[k][bin] += counts[k][bin];
        }
    });
    return totals;
}

struct Covariance {
    std::int64_t count = 0;
    double at[3][3] = {};
};

// Covariance of the densities of all tissue.
Covariance tissue_covariance(Image<const std::uint8_t> image, int threads) {
    Table table;
    for (int k = 0; k < 3; ++k) table.set(k, {k == 0 ? 1.0 : 0.0, k == 1 ? 1.0 : 0.0, k == 2 ? 1.0 : 0.0});
    const int brightest = brightest_tissue();
    const std::ptrdiff_t pixels = image.rows * image.cols;
    const std::ptrdiff_t blocks = (pixels + block - 1) / block;
    struct Sums {
        double of[9];
        std::ptrdiff_t count;
    };
    std::vector<Sums> sums(static_cast<std::size_t>(blocks));
    parallel_for(blocks, threads, [&](std::ptrdiff_t first, std::ptrdiff_t last, int) {
        std::vector<float> values(3 * (block + lanes) + 4);
        float totals[9][lanes];
        for (std::ptrdiff_t i = first; i < last; ++i) {
            const std::ptrdiff_t count = std::min(block, pixels - i * block);
            const std::ptrdiff_t found =
                look_up_tissue<3>(image.data + 3 * i * block, count, brightest, table, values.data());
            const std::ptrdiff_t padded = (found + lanes - 1) / lanes * lanes;
            std::fill(values.begin() + 3 * found, values.begin() + 3 * padded, 0.0F);
            add_moments(values.data(), padded, totals);
            for (int k = 0; k < 9; ++k) {
                sums[i].of[k] = 0;
                for (const float total : totals[k]) sums[i].of[k] += static_cast<double>(total);
            }
            sums[i].count = found;
        }
    });
    Covariance covariance;
    double total[9] = {};
    for (const Sums& part : sums) {
        for (int k = 0; k < 9; ++k) total[k] += part.of[k];
        covariance.count += part.count;
    }
    const auto n = static_cast<double>(std::max<std::int64_t>(covariance.count, 1));
    int k = 3;
    for (int i = 0; i < 3; ++i) {
        for (int j = i; j < 3; ++j) {
            covariance.at[i][j] = covariance.at[j][i] = total[k++] / n - total[i] / n * (total[j] / n);
        }
    }
    return covariance;
}

// Eigenvectors by decreasing eigenvalue, with positive sums. Jacobi's rotations.
std::array<Vector, 3> eigenvectors(const Covariance& covariance) {
    double a[3][3];
    std::memcpy(a, covariance.at, sizeof(a));
    double v[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
    for (int sweep = 0; sweep < 30; ++sweep) {
        for (int p = 0; p < 2; ++p) {
            for (int q = p + 1; q < 3; ++q) {
                if (a[p][q] == 0) continue;
                const double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
                const double t = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
                const double c = 1 / std::sqrt(t * t + 1);
                const double s = t * c;
                for (int k = 0; k < 3; ++k) {
                    const double kp = a[k][p];
                    a[k][p] = c * kp - s * a[k][q];
                    a[k][q] = s * kp + c * a[k][q];
                }
                for (int k = 0; k < 3; ++k) {
                    const double pk = a[p][k];
                    a[p][k] = c * pk - s * a[q][k];
                    a[q][k] = s * pk + c * a[q][k];
                }
                for (auto& row : v) {
                    const double kp = row[p];
                    row[p] = c * kp - s * row[q];
                    row[q] = s * kp + c * row[q];
                }
            }
        }
    }
    int order[3] = {0, 1, 2};
    std::stable_sort(order, order + 3, [&](int i, int j) { return a[i][i] > a[j][j]; });
    std::array<Vector, 3> found;
    for (int k = 0; k < 3; ++k) {
        const int i = order[k];
        const double sign = v[0][i] + v[1][i] + v[2][i] < 0 ? -1 : 1;
        found[k] = {sign * v[0][i], sign * v[1][i], sign * v[2][i]};
    }
    return found;
}

// The direction in the plane of s and t at a position among the bins of angle_bins.
Vector direction(double position, const Vector& s, const Vector& t) {
    const double turn = position / (bins / 4) - 2;
    const double slope = turn > 1 ? 2 - turn : turn < -1 ? -2 - turn : turn;
    const double ahead = (1 - std::fabs(slope)) * (std::fabs(turn) > 1 ? -1 : 1);
    return unit({ahead * s[0] + slope * t[0], ahead * s[1] + slope * t[1], ahead * s[2] + slope * t[2]});
}

bool are_apart(const Vector& a, const Vector& b) {
    const Vector normal = cross(a, b);
    return dot(normal, normal) >= min_sine * min_sine * dot(a, a) * dot(b, b);
}

// The weights of densities that give each stain's concentration, by least squares.
std::array<Vector, 2> unmixing(const Vector& a, const Vector& b) {
    const double aa = dot(a, a), ab = dot(a, b), bb = dot(b, b);
    const double determinant = aa * bb - ab * ab;
    std::array<Vector, 2> weights;
    for (int k = 0; k < 3; ++k) {
        weights[0][k] = (bb * a[k] - ab * b[k]) / determinant;
        weights[1][k] = (aa * b[k] - ab * a[k]) / determinant;
    }
    return weights;
}

}  // namespace

Stains fit_stains(Image<const std::uint8_t> image, int threads) {
    expect_rgb(image);
    const Covariance covariance = tissue_covariance(image, threads);
    if (covariance.count == 0) {
        throw std::invalid_argument("image: expected stained tissue, got none (no pixel is dark enough)");
    }
    const auto axes = eigenvectors(covariance);

    Table table;
    table.set(0, axes[0]);
    table.set(1, axes[1]);
    const int brightest = brightest_tissue();
    const auto angles = count_blocks<1>(image, threads,
                                        [&](const std::uint8_t* pixels, std::ptrdiff_t count, float* numbers,
                                            std::array<Histogram, 1>& counts) {
                                            std::int32_t found[block];
                                            const std::ptrdiff_t tissue =
                                                look_up_tissue<2>(pixels, count, brightest, table, numbers);
                                            angle_bins(numbers, tissue, found);
                                            for (std::ptrdiff_t i = 0; i < tissue; ++i) ++counts[0][found[i]];
                                        });
    Vector first = direction(percentile(angles[0], 0.01), axes[0], axes[1]);
    Vector second = direction(percentile(angles[0], 0.99), axes[0], axes[1]);
    if (first[0] < second[0]) std::swap(first, second);
    if (!are_apart(first, second)) {
        throw std::invalid_argument("image: expected two stains, got one colour of tissue");
    }

    const auto weights = unmixing(first, second);
    double scale[2];
    for (int k = 0; k < 2; ++k) {
        double most = 0;
        for (const double weight : weights[k]) {
            most += std::max(weight * densities()[0], weight * densities()[255]);
        }
        scale[k] = (bins - 1) / most;
        table.set(k, weights[k], scale[k]);
    }
    const auto concentrations =
        count_blocks<2>(image, threads,
                        [&](const std::uint8_t* pixels, std::ptrdiff_t count, float* numbers,
                            std::array<Histogram, 2>& counts) {
                            look_up<2>(pixels, count, table, numbers);
                            for (std::ptrdiff_t i = 0; i < count; ++i) {
                                ++counts[0][static_cast<std::int32_t>(std::max(numbers[2 * i], 0.0F))];
                                ++counts[1][static_cast<std::int32_t>(std::max(numbers[2 * i + 1], 0.0F))];
                            }
                        });
    Stains stains;
    for (int k = 0; k < 2; ++k) {
        const double position = percentile(concentrations[k], 0.99);
        if (position < 1) {  // bin 0 holds all that is negative
            throw std::invalid_argument(
                "image: expected more stained tissue, got too little to tell its strength");
        }
        stains.strengths[k] = position / scale[k];
        std::copy_n((k == 0 ? first : second).begin(), 3, stains.vectors[k]);
    }
    return stains;
}

void normalize_stain(Image<const std::uint8_t> image, const Stains& source, const Stains& target,
                     Image<std::uint8_t> out, int threads) {
    expect_rgb(image);
    for (const auto& [name, stains] : {std::pair{"source", &source}, std::pair{"target", &target}}) {
        bool valid = true;
        for (const auto& vector : stains->vectors) {
            valid &= std::all_of(vector, vector + 3, [](double value) { return std::isfinite(value); });
        }
        for (const double strength : stains->strengths) valid &= std::isfinite(strength) && strength > 0;
        if (!valid) {
            throw std::invalid_argument(std::string(name) +
                                        ": expected finite vectors and finite strengths above 0, got others");
        }
    }
    const Vector first = {source.vectors[0][0], source.vectors[0][1], source.vectors[0][2]};
    const Vector second = {source.vectors[1][0], source.vectors[1][1], source.vectors[1][2]};
    if (!are_apart(first, second) || dot(first, first) == 0 || dot(second, second) == 0) {
        throw std::invalid_argument("source: expected two stains of different colours, got the same twice");
    }

    // The base-2 logarithm of the light that is left is linear in the densities, too.
    const auto weights = unmixing(first, second);
    Table table;
    for (int channel = 0; channel < 3; ++channel) {
        Vector mixed = {};
        for (int stain = 0; stain < 2; ++stain) {
            const double factor =
                target.vectors[stain][channel] * target.strengths[stain] / source.strengths[stain];
            for (int k = 0; k < 3; ++k) mixed[k] += factor * weights[stain][k];
        }
        table.set(channel, mixed, -1 / std::log(2.0), std::log2(white));
    }
    const std::ptrdiff_t pixels = image.rows * image.cols;
    parallel_for((pixels + block - 1) / block, threads, [&](std::ptrdiff_t begin, std::ptrdiff_t end, int) {
        std::vector<float> exponents(3 * block + 4);
        for (std::ptrdiff_t i = begin; i < end; ++i) {
            const std::ptrdiff_t count = std::min(block, pixels - i * block);
            look_up<3>(image.data + 3 * i * block, count, table, exponents.data());
            power_of_two(exponents.data(), 3 * count, out.data + 3 * i * block);
        }
    });
}

}  // namespace nucfast
