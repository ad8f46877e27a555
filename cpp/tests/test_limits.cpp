// Images beyond a kernel's limit are refused by their sides alone, before a pixel is touched. There is no
// memory behind these.
#include <cstdint>
#include <stdexcept>

#include "check.hpp"
#include "nucfast/components.hpp"
#include "nucfast/contours.hpp"
#include "nucfast/hover_net.hpp"
#include "nucfast/properties.hpp"
#include "nucfast/split.hpp"
#include "nucfast/watershed.hpp"

namespace nucfast {

namespace {

constexpr std::ptrdiff_t kRows = std::ptrdiff_t{1} << 16;
constexpr std::ptrdiff_t kCols = std::ptrdiff_t{1} << 15;  // 2^31 pixels in all

template <typename T>
Plane<T> plane() {
    return {nullptr, kRows, kCols};
}

template <typename Error, typename Body>
bool throws(const Body& body) {
    try {
        body();
    } catch (const Error&) {
        return true;
    }
    return false;
}

}  // namespace

TEST(kernels_that_index_pixels_in_31_bits_refuse_more) {
    using Bytes = const std::uint8_t;
    CHECK(throws<std::length_error>(
        [] { split_instances(plane<Bytes>(), plane<const bool>(), 1, plane<Label>()); }));
    CHECK(throws<std::length_error>([] { find_nuclei(plane<Bytes>(), plane<Bytes>(), {}, plane<Label>()); }));
    CHECK(throws<std::length_error>(
        [] { watershed(plane<Bytes>(), plane<const bool>(), plane<const Label>(), 1, plane<Label>()); }));
    CHECK(throws<std::length_error>(
        [] { hover_net_labels(plane<const float>(), {nullptr, kRows, kCols, 2}, {}, 1, plane<Label>()); }));
}

TEST(kernels_that_follow_runs_refuse_longer_sides) {
    constexpr std::ptrdiff_t kLong = std::ptrdiff_t{1} << 31;
    CHECK(throws<std::length_error>([] { run_components(Plane<const bool>{nullptr, 1, kLong}, 8, 1); }));
    CHECK(throws<std::invalid_argument>([] { contours({nullptr, 1, kLong}, RingStyle::edges, 1); }));
    CHECK(throws<std::invalid_argument>([] { region_properties({nullptr, kLong, 1}, 1, {}); }));
}

}  // namespace nucfast
