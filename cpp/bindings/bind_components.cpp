#include "arrays.hpp"
#include "nucfast/components.hpp"
#include "nucfast/parallel.hpp"

namespace nucfast::bindings {

using namespace py::literals;

namespace {

template <typename T>
Label label(const py::array& image, py::array& labels, int connectivity, int threads) {
    const auto values = read<T>(image, "image");
    const auto out = write<Label>(labels, "out", shape_of(image));
    const py::gil_scoped_release unlock;
    return label_components(values, connectivity, useful_threads(values.size(), threads), out);
}

}  // namespace

void bind_components(py::module_& m) {
    m.def(
        "label_components",
        [](const py::array& image, py::array& labels, int connectivity, int threads) {
            expect_threads(threads);
            const auto dtype = image.dtype();
            if (dtype.equal(py::dtype::of<bool>())) return label<bool>(image, labels, connectivity, threads);
            if (dtype.equal(py::dtype::of<std::uint8_t>())) {
                return label<std::uint8_t>(image, labels, connectivity, threads);
            }
            if (dtype.equal(py::dtype::of<std::uint16_t>())) {
                return label<std::uint16_t>(image, labels, connectivity, threads);
            }
            if (dtype.equal(py::dtype::of<Label>()))
                return label<Label>(image, labels, connectivity, threads);
            throw py::type_error("image: expected bool, uint8, uint16 or int32, got " +
                                 py::str(dtype).cast<std::string>());
        },
        "image"_a.noconvert(), "out"_a.noconvert(), "connectivity"_a, "threads"_a);
}

}  // namespace nucfast::bindings
