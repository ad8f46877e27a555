#include "nucfast/geojson.hpp"

#include <cmath>
#include <cstring>

#include "input.hpp"

namespace {

// Any double there is, and often one of the size of a coordinate.
double number(nucfast::fuzzing::Input& input) {
    if (input.byte() % 2 == 0) return input.between(0, 255) / 7.0 - 18;
    std::uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 8 | input.byte();
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace nucfast;
    fuzzing::Input input(data, size);
    const int count = input.between(0, 4), names = input.between(0, 3);
    const FeatureTexts texts{{input.byte(), input.byte()},
                             {number(input), number(input)},
                             {R"({"name":"a"})", R"({"name":"b"})"},
                             {R"("x")", R"("y")", R"("z")"}};
    const auto id = input.values<std::int64_t>(count);
    std::vector<std::int32_t> codes;
    std::vector<std::int64_t> offsets{0};
    for (int i = 0; i < count; ++i) {
        codes.push_back(input.between(-1, 1));
        offsets.push_back(offsets.back() + input.between(0, 5));
    }
    std::vector<double> vertices;
    for (std::int64_t i = 0; i < 2 * offsets.back(); ++i) vertices.push_back(number(input));
    std::vector<float> measurements;
    for (int i = 0; i < count * names; ++i) measurements.push_back(static_cast<float>(number(input)));
    std::string out;
    geojson_features(
        {id.data(), codes.data(), vertices.data(), offsets.data(), {measurements.data(), count, names}},
        texts, out);

    // Every coordinate reads back as itself, rounded; what is not finite as null.
    std::size_t at = 0;
    for (int i = 0; i < count; ++i) {
        at = out.find(R"("coordinates":[[)", at);
        REQUIRE(at != std::string::npos);
        at += 16;
        for (std::int64_t k = 2 * offsets[i]; k < 2 * offsets[i + 1]; ++k) {
            at = out.find_first_of("-0123456789n", at);
            const double rounded = std::nearbyint((vertices[k] - texts.origin[k % 2]) * 100) / 100;
            if (!std::isfinite(rounded)) {
                REQUIRE(out.compare(at, 4, "null") == 0);
                at += 4;
                continue;
            }
            char* end = nullptr;
            REQUIRE(std::strtod(out.c_str() + at, &end) == rounded);
            at = static_cast<std::size_t>(end - out.c_str());
        }
        const std::string tail = offsets[i] < offsets[i + 1] ? "]]]}" : "]]}";
        REQUIRE(out.compare(at, tail.size(), tail) == 0);
    }
    return 0;
}
