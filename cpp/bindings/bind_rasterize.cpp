#include "arrays.hpp"
#include "nucfast/rasterize.hpp"

namespace nucfast::bindings {

using namespace pybind11::literals;

void bind_rasterize(py::module_& m) {
    m.def(
        "rasterize",
        [](const py::array& vertices, const py::array& offsets, const py::array& values, py::array& out) {
            const auto points = read_points(vertices, "vertices");
            const auto* value = read_column<Label>(values, "values");
            const auto* first = read_column<std::int64_t>(offsets, "offsets", Shape{values.size() + 1});
            const auto plane = write<Label>(out, "out");
            const py::ssize_t count = values.size();
            const py::gil_scoped_release unlock;  // no Python object is touched below
            rasterize(points, first, value, count, plane);
        },
        "vertices"_a.noconvert(), "offsets"_a.noconvert(), "values"_a.noconvert(), "out"_a.noconvert());
}

}  // namespace nucfast::bindings
