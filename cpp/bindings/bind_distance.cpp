#include "arrays.hpp"
#include "nucfast/distance.hpp"
#include "nucfast/parallel.hpp"

namespace nucfast::bindings {

using namespace py::literals;

namespace {

template <typename T>
void transform(const py::array& image, py::array& distances, int threads) {
    const auto values = read<T>(image, "image");
    const auto out = write<float>(distances, "out", shape_of(image));
    constexpr std::ptrdiff_t kMaxSide = std::ptrdiff_t{1} << 24;
    if (values.rows > kMaxSide || values.cols > kMaxSide) {
        throw py::value_error("image: expected sides up to 16777216, got " + to_string(shape_of(image)));
    }
    const py::gil_scoped_release unlock;
    distance_transform(values, useful_threads(values.size(), threads), out);
}

}  // namespace

void bind_distance(py::module_& m) {
    m.def(
        "distance_transform",
        [](const py::array& image, py::array& distances, int threads) {
            expect_threads(threads);
            const auto dtype = image.dtype();
            if (dtype.equal(py::dtype::of<bool>())) return transform<bool>(image, distances, threads);
            if (dtype.equal(py::dtype::of<Label>())) return transform<Label>(image, distances, threads);
            throw py::type_error("image: expected bool or int32, got " + py::str(dtype).cast<std::string>());
        },
        "image"_a.noconvert(), "out"_a.noconvert(), "threads"_a);
}

}  // namespace nucfast::bindings
