#include "nucfast/geojson.hpp"

#include <charconv>
#include <cmath>

namespace nucfast {
namespace {

std::uint64_t mix(std::uint64_t value) {
    value += 0x9E3779B97F4A7C15U;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9U;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBU;
    return value ^ (value >> 31);
}

void append_uuid(std::uint64_t id, const std::array<std::uint64_t, 2>& key, std::string& out) {
    constexpr char digits[] = "0123456789abcdef";
    const std::uint64_t high = (mix(mix(id ^ key[0]) + key[1]) & ~0xF000ULL) | 0x8000ULL;
    const std::uint64_t low = (mix(mix(id ^ key[1]) + key[0]) & ~(3ULL << 62)) | (1ULL << 63);
    char text[36];
    char* to = text;
    for (int i = 0; i < 32; ++i) {
        if (i == 8 || i == 12 || i == 16 || i == 20) *to++ = '-';
        *to++ = digits[((i < 16 ? high : low) >> (4 * (15 - i % 16))) & 15];
    }
    out.append(text, sizeof text);
}

// `decimals` digits behind the point at most, one at least. Not finite: null.
template <int decimals>
void append_number(double value, std::string& out) {
    constexpr std::uint64_t one = decimals == 2 ? 100 : 10000;
    static_assert(decimals == 2 || decimals == 4);
    const double scaled = std::nearbyint(value * static_cast<double>(one));
    char text[32];
    if (!(std::abs(scaled) < 1e15)) {  // beyond 2^53 the digits behind the point mean nothing
        if (!std::isfinite(scaled)) {
            out += "null";
            return;
        }
        out.append(text, std::to_chars(text, text + sizeof text, scaled / static_cast<double>(one)).ptr);
        return;
    }
    const auto units = static_cast<std::uint64_t>(std::abs(scaled));
    char* end = text;
    if (scaled < 0) *end++ = '-';
    end = std::to_chars(end, text + sizeof text, units / one).ptr;
    *end++ = '.';
    std::uint64_t rest = units % one;
    for (int i = decimals; i-- > 0; rest /= 10) end[i] = static_cast<char>('0' + rest % 10);
    end += decimals;
    while (end[-1] == '0' && end[-2] != '.') --end;
    out.append(text, end);
}

}  // namespace

void geojson_features(const FeatureColumns& columns, const FeatureTexts& texts, std::string& out) {
    for (std::ptrdiff_t i = 0; i < columns.measurements.rows; ++i) {
        out += i == 0 ? R"({"type":"Feature","id":")"
                      : ",\n"
                        R"({"type":"Feature","id":")";
        append_uuid(static_cast<std::uint64_t>(columns.id[i]), texts.key, out);
        out += R"(","geometry":{"type":"Polygon","coordinates":[[)";
        for (std::int64_t p = columns.offsets[i]; p < columns.offsets[i + 1]; ++p) {
            out += p == columns.offsets[i] ? "[" : ",[";
            append_number<2>(columns.vertices[2 * p] - texts.origin[0], out);
            out += ',';
            append_number<2>(columns.vertices[2 * p + 1] - texts.origin[1], out);
            out += ']';
        }
        out += R"(]]},"properties":{"objectType":"detection",)";
        if (columns.class_code[i] >= 0) {
            out += R"("classification":)";
            out += texts.classes[static_cast<std::size_t>(columns.class_code[i])];
            out += ',';
        }
        out += R"("measurements":{)";
        bool first = true;
        const float* row = columns.measurements.row(i);
        for (std::ptrdiff_t k = 0; k < columns.measurements.cols; ++k) {
            if (!std::isfinite(row[k])) continue;
            if (!first) out += ',';
            first = false;
            out += texts.measurements[static_cast<std::size_t>(k)];
            out += ':';
            append_number<4>(row[k], out);
        }
        out += "}}}";
    }
}

}  // namespace nucfast
