#include "arrays.hpp"
#include "nucfast/watershed.hpp"

namespace nucfast::bindings {

using namespace py::literals;

namespace {

template <typename T>
void flood(const py::array& elevation, const py::array& mask, const py::array& markers, py::array& out,
           int threads) {
    const auto levels = read<T>(elevation, "elevation");
    const auto inside = read<bool>(mask, "mask", shape_of(elevation));
    const auto seeds = read<Label>(markers, "markers", shape_of(elevation));
    const auto labels = write<Label>(out, "out", shape_of(elevation));
    const py::gil_scoped_release unlock;
    watershed(levels, inside, seeds, threads, labels);
}

}  // namespace

void bind_watershed(py::module_& m) {
    m.def(
        "watershed",
        [](const py::array& elevation, const py::array& mask, const py::array& markers, py::array& out,
           int threads) {
            expect_threads(threads);
            const auto dtype = elevation.dtype();
            if (dtype.equal(py::dtype::of<std::uint8_t>())) {
                return flood<std::uint8_t>(elevation, mask, markers, out, threads);
            }
            if (dtype.equal(py::dtype::of<std::uint16_t>())) {
                return flood<std::uint16_t>(elevation, mask, markers, out, threads);
            }
            throw py::type_error("elevation: expected uint8 or uint16, got " +
                                 py::str(dtype).cast<std::string>());
        },
        "elevation"_a.noconvert(), "mask"_a.noconvert(), "markers"_a.noconvert(), "out"_a.noconvert(),
        "threads"_a);
}

}  // namespace nucfast::bindings
