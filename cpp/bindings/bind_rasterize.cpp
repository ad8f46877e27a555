#include "arrays.hpp"
#include "nucfast/rasterize.hpp"

namespace nucfast::bindings {

using namespace pybind11::literals;

void bind_rasterize(py::module_& m) {
    m.def(
        "rasterize",
        [](const py::array& vertices, const py::array& offsets, const py::array& values, py::array& out) {
            const auto points = read<double>(vertices, "vertices", Shape{vertices.size() / 2, 2});
            expect<Label>(values, "values", 1, {});
            expect<std::int64_t>(offsets, "offsets", 1, Shape{values.size() + 1});
            const auto plane = write<Label>(out, "out");
            const auto* first = static_cast<const std::int64_t*>(offsets.data());
            const auto* value = static_cast<const Label*>(values.data());
            const py::ssize_t count = values.size();
            const py::gil_scoped_release unlock;  // no Python object is touched below
            rasterize(points, first, value, count, plane);
        },
        "vertices"_a.noconvert(), "offsets"_a.noconvert(), "values"_a.noconvert(), "out"_a.noconvert());
}

}  // namespace nucfast::bindings
