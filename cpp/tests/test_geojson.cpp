#include "nucfast/geojson.hpp"

#include <limits>

#include "check.hpp"

namespace nucfast {
namespace {

// What is written for one measurement of a nucleus with one vertex.
std::string feature_of(float measurement, double x, std::int32_t class_code = 0) {
    const std::int64_t id = 7;
    const double vertices[] = {x, 2.5};
    const std::int64_t offsets[] = {0, 1};
    std::string out;
    geojson_features({&id, &class_code, vertices, offsets, {&measurement, 1, 1}},
                     {{1, 2}, {0.5, 0.0}, {R"({"name":"a"})"}, {R"("area")"}}, out);
    return out;
}

bool holds(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST(geojson_rounds_to_the_nearest_even_digit) {
    CHECK(holds(feature_of(1.0F, 1.5), "[[[1.0,2.5]]]"));
    CHECK(holds(feature_of(1.0F, 0.625), "[[[0.12,2.5]]]"));
    CHECK(holds(feature_of(1.0F, 0.875), "[[[0.38,2.5]]]"));
    CHECK(holds(feature_of(1.0F, -1.75), "[[[-2.25,2.5]]]"));
    CHECK(holds(feature_of(1.0F, 0.499), "[[[0.0,2.5]]]"));  // no minus
    CHECK(holds(feature_of(0.03125F, 1.5), R"("measurements":{"area":0.0312})"));
    CHECK(holds(feature_of(-0.00006F, 1.5), R"("measurements":{"area":-0.0001})"));
}

TEST(geojson_keeps_what_is_too_large_to_round) {
    CHECK(holds(feature_of(1.0F, 1e17), "[[[1e+17,2.5]]]"));
    CHECK(holds(feature_of(1.0F, 9999999999999.5), "[[[9999999999999.0,2.5]]]"));
    CHECK(holds(feature_of(1e30F, 1.5), "1.0000000150474662e+30"));
    CHECK(holds(feature_of(1.0F, std::numeric_limits<double>::infinity()), "[[[null,2.5]]]"));
}

TEST(geojson_leaves_out_what_there_is_not) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    CHECK(holds(feature_of(nan, 1.5), R"("measurements":{}})"));
    CHECK(holds(feature_of(1.0F, 1.5), R"("classification":{"name":"a"},)"));
    CHECK(!holds(feature_of(1.0F, 1.5, -1), "classification"));
}

TEST(geojson_separates_features) {
    const std::int64_t ids[] = {1, 2};
    const std::int32_t codes[] = {-1, -1};
    const std::int64_t offsets[] = {0, 0, 0};
    const float measurements[] = {1, 2};
    std::string out = "[";
    geojson_features({ids, codes, nullptr, offsets, {measurements, 2, 1}}, {{3, 4}, {0, 0}, {}, {R"("a")"}},
                     out);
    CHECK(out.rfind(R"([{"type":"Feature")", 0) == 0);
    CHECK(holds(out, "}}},\n{\"type\":\"Feature\""));
    const auto uuid = [&](std::size_t from) { return out.substr(out.find("\"id\":\"", from) + 6, 36); };
    const std::string first = uuid(0), second = uuid(out.find('\n'));
    CHECK(first != second);
    for (const std::string& text : {first, second}) {
        CHECK(text[14] == '8');                                          // version
        CHECK(std::string("89ab").find(text[19]) != std::string::npos);  // variant
    }
}

}  // namespace nucfast
