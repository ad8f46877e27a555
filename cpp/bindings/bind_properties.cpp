#include <pybind11/stl.h>

#include <optional>
#include <utility>
#include <vector>

#include "arrays.hpp"
#include "nucfast/properties.hpp"

namespace nucfast::bindings {

using namespace pybind11::literals;

namespace {

template <typename T>
T* write_column(py::array& array, const char* name, const Shape& shape) {
    expect<T>(array, name, static_cast<py::ssize_t>(shape.size()), shape);
    expect_writable<T>(array, name);
    return static_cast<T*>(array.mutable_data());
}

// An image, and the room for its sums.
Intensity read_intensity(Plane<const Label> labels, py::ssize_t count, const py::array& image,
                         py::array& sums) {
    Intensity intensity;
    if (image.dtype().equal(py::dtype::of<float>())) {
        intensity.image = read_cutout<float>(image, "intensity");
    } else if (image.dtype().equal(py::dtype::of<std::uint8_t>())) {
        intensity.image = read_cutout<std::uint8_t>(image, "intensity");
    } else {
        throw py::type_error("intensity: expected uint8 or float32, got " +
                             py::str(image.dtype()).cast<std::string>());
    }
    const Shape sides = {image.shape(0), image.shape(1)};
    if (sides != Shape{labels.rows, labels.cols}) {
        throw py::value_error("intensity: expected the sides of labels, " +
                              to_string({labels.rows, labels.cols}) + ", got " + to_string(sides));
    }
    intensity.sums = write<double>(sums, "sums", Shape{count, image.shape(2)});
    return intensity;
}

}  // namespace

void bind_properties(py::module_& m) {
    m.def(
        "region_properties",
        [](const py::array& labels, py::array& area, py::array& bbox, py::array& first_pixel,
           py::array& moments, py::array& perimeter, py::array& convex_area,
           std::vector<std::pair<py::array, py::array>>& intensities) {
            const auto plane = read<Label>(labels, "labels");
            const py::ssize_t count = area.size();
            const RegionColumns columns{write_column<std::int64_t>(area, "area", {count}),
                                        write_column<std::int32_t>(bbox, "bbox", {count, 4}),
                                        write_column<std::int32_t>(first_pixel, "first_pixel", {count, 2}),
                                        write_column<double>(moments, "moments", {count, 5}),
                                        write_column<double>(perimeter, "perimeter", {count}),
                                        write_column<double>(convex_area, "convex_area", {count})};
            std::vector<Intensity> images;
            for (auto& [image, sums] : intensities)
                images.push_back(read_intensity(plane, count, image, sums));
            const py::gil_scoped_release unlock;  // no Python object is touched below
            region_properties(plane, count, columns, images);
        },
        "labels"_a.noconvert(), "area"_a.noconvert(), "bbox"_a.noconvert(), "first_pixel"_a.noconvert(),
        "moments"_a.noconvert(), "perimeter"_a.noconvert(), "convex_area"_a.noconvert(), "intensities"_a);
    m.def(
        "intensity_sums",
        [](const py::array& labels, const py::array& intensity, py::array& pixels, py::array& sums,
           const std::optional<py::array>& weights) {
            const auto plane = read<Label>(labels, "labels");
            const auto image = read_intensity(plane, pixels.size(), intensity, sums);
            auto* const counts = write_column<std::int64_t>(pixels, "pixels", {pixels.size()});
            Plane<const std::uint8_t> times;
            if (weights) times = read<std::uint8_t>(*weights, "weights", Shape{plane.rows, plane.cols});
            const py::gil_scoped_release unlock;  // no Python object is touched below
            intensity_sums(plane, pixels.size(), counts, image, times);
        },
        "labels"_a.noconvert(), "intensity"_a.noconvert(), "pixels"_a.noconvert(), "sums"_a.noconvert(),
        "weights"_a.noconvert());
}

}  // namespace nucfast::bindings
