// Nuclei as the features of a QuPath GeoJSON document, one per line.
//
// Coordinates are rounded to 0.01 and measurements to 0.0001, as NumPy rounds (multiply, to the nearest even
// whole number, divide), and written as the shortest decimals that read back as the same doubles: the whole
// number is what is printed, with its point put in. What is too large for that is left to std::to_chars.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "nucfast/view.hpp"

namespace nucfast {

// One row per nucleus; the caller's memory.
struct FeatureColumns {
    const std::int64_t* id;           // (count)
    const std::int32_t* class_code;   // (count) position in `classes`; -1: no class
    const double* vertices;           // (points, 2) x, y
    const std::int64_t* offsets;      // (count + 1) ring i is vertices [offsets[i], offsets[i + 1])
    Plane<const float> measurements;  // (count, names); what is not finite is left out
};

struct FeatureTexts {
    std::array<std::uint64_t, 2> key;       // of the slide, for the UUIDs
    std::array<double, 2> origin;           // subtracted from the vertices
    std::vector<std::string> classes;       // JSON of each class
    std::vector<std::string> measurements;  // JSON strings: their names
};

// Appends the features of all nuclei to `out`, with ",\n" between them.
//
// The UUIDs are of version 8 (RFC 9562: custom): two halves of 64 bits, each the SplitMix64 finaliser (Steele
// et al., 2014) of the id mixed with half of the slide's key; then the version and variant bits.
//
// The caller guarantees that codes and offsets are in range. Touches nothing but its arguments.
void geojson_features(const FeatureColumns& columns, const FeatureTexts& texts, std::string& out);

}  // namespace nucfast
