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

template <typename T>
void add_intensity(Plane<const Label> labels, const py::array& intensity, py::array& pixels,
                   py::array& sums) {
    const auto image = read_cutout<T>(intensity, "intensity");
    if (image.rows != labels.rows || image.cols != labels.cols) {
        throw py::value_error("intensity: expected the sides of labels, " +
                              to_string({labels.rows, labels.cols}) + ", got " +
                              to_string({image.rows, image.cols}));
    }
    const auto out = write<double>(sums, "sums", Shape{pixels.size(), image.channels});
    auto* const counts = write_column<std::int64_t>(pixels, "pixels", {pixels.size()});
    const py::gil_scoped_release unlock;  // no Python object is touched below
    intensity_sums(labels, image, counts, out);
}

}  // namespace

void bind_properties(py::module_& m) {
    m.def(
        "region_properties",
        [](const py::array& labels, py::array& area, py::array& bbox, py::array& first_pixel,
           py::array& moments, py::array& perimeter, py::array& convex_area) {
            const auto plane = read<Label>(labels, "labels");
            const py::ssize_t count = area.size();
            const RegionColumns columns{write_column<std::int64_t>(area, "area", {count}),
                                        write_column<std::int32_t>(bbox, "bbox", {count, 4}),
                                        write_column<std::int32_t>(first_pixel, "first_pixel", {count, 2}),
                                        write_column<double>(moments, "moments", {count, 5}),
                                        write_column<double>(perimeter, "perimeter", {count}),
                                        write_column<double>(convex_area, "convex_area", {count})};
            const py::gil_scoped_release unlock;  // no Python object is touched below
            region_properties(plane, count, columns);
        },
        "labels"_a.noconvert(), "area"_a.noconvert(), "bbox"_a.noconvert(), "first_pixel"_a.noconvert(),
        "moments"_a.noconvert(), "perimeter"_a.noconvert(), "convex_area"_a.noconvert());
    m.def(
        "intensity_sums",
        [](const py::array& labels, const py::array& intensity, py::array& pixels, py::array& sums) {
            const auto plane = read<Label>(labels, "labels");
            if (intensity.dtype().equal(py::dtype::of<float>()))
                return add_intensity<float>(plane, intensity, pixels, sums);
            if (intensity.dtype().equal(py::dtype::of<std::uint8_t>())) {
                return add_intensity<std::uint8_t>(plane, intensity, pixels, sums);
            }
            throw py::type_error("intensity: expected uint8 or float32, got " +
                                 py::str(intensity.dtype()).cast<std::string>());
        },
        "labels"_a.noconvert(), "intensity"_a.noconvert(), "pixels"_a.noconvert(), "sums"_a.noconvert());
}

}  // namespace nucfast::bindings
