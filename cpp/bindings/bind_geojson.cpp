#include <pybind11/stl.h>

#include "arrays.hpp"
#include "nucfast/geojson.hpp"

namespace nucfast::bindings {

using namespace pybind11::literals;

void bind_geojson(py::module_& m) {
    m.def(
        "geojson_features",
        [](const py::array& id, const py::array& class_code, const py::array& vertices,
           const py::array& offsets, const py::array& measurements, std::array<std::uint64_t, 2> key,
           std::array<double, 2> origin, std::vector<std::string> classes, std::vector<std::string> names) {
            const auto values = read<float>(measurements, "measurements",
                                            Shape{id.size(), static_cast<py::ssize_t>(names.size())});
            const auto points = read_points(vertices, "vertices");
            const FeatureColumns columns{
                read_column<std::int64_t>(id, "id", Shape{values.rows}),
                read_column<std::int32_t>(class_code, "class_code", Shape{values.rows}), points.data,
                read_column<std::int64_t>(offsets, "offsets", Shape{values.rows + 1}), values};
            for (py::ssize_t i = 0; i < values.rows; ++i) {
                if (columns.class_code[i] >= static_cast<std::int32_t>(classes.size())) {
                    throw py::value_error("class_code: expected less than " + std::to_string(classes.size()) +
                                          ", got " + std::to_string(columns.class_code[i]));
                }
                if (columns.offsets[i] < 0 || columns.offsets[i + 1] > points.rows) {
                    throw py::value_error("offsets: expected 0 to " + std::to_string(points.rows) +
                                          ", got others");
                }
            }
            std::string text;
            {
                const py::gil_scoped_release unlock;  // no Python object is touched below
                geojson_features(columns, {key, origin, std::move(classes), std::move(names)}, text);
            }
            return py::bytes(text);
        },
        "id"_a.noconvert(), "class_code"_a.noconvert(), "vertices"_a.noconvert(), "offsets"_a.noconvert(),
        "measurements"_a.noconvert(), "key"_a, "origin"_a, "classes"_a, "names"_a);
}

}  // namespace nucfast::bindings
