#include "arrays.hpp"
#include "nucfast/contours.hpp"

namespace nucfast::bindings {

using namespace pybind11::literals;

void bind_contours(py::module_& m) {
    m.def(
        "contours",
        [](const py::array& labels, bool midpoints, int threads) {
            expect_threads(threads);
            const auto plane = read<Label>(labels, "labels");
            Rings rings;
            {
                const py::gil_scoped_release unlock;  // no Python object is touched below
                rings = contours(plane, midpoints ? RingStyle::midpoints : RingStyle::edges, threads);
            }
            const auto count = static_cast<py::ssize_t>(rings.labels.size());
            const auto points = static_cast<py::ssize_t>(rings.points.size() / 2);
            return py::make_tuple(to_numpy(std::move(rings.labels), {count}),
                                  to_numpy(std::move(rings.offsets), {count + 1}),
                                  to_numpy(std::move(rings.points), {points, 2}));
        },
        "labels"_a.noconvert(), "midpoints"_a, "threads"_a);
}

}  // namespace nucfast::bindings
