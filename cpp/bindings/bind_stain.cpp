#include "arrays.hpp"
#include "nucfast/stain.hpp"

namespace nucfast::bindings {

using namespace pybind11::literals;

namespace {

Stains read_stains(const py::array& vectors, const py::array& strengths, const std::string& name) {
    expect<double>(vectors, (name + ".vectors").c_str(), 2, Shape{2, 3});
    expect<double>(strengths, (name + ".strengths").c_str(), 1, Shape{2});
    Stains stains;
    std::copy_n(static_cast<const double*>(vectors.data()), 6, stains.vectors[0]);
    std::copy_n(static_cast<const double*>(strengths.data()), 2, stains.strengths);
    return stains;
}

}  // namespace

void bind_stain(py::module_& m) {
    m.def(
        "fit_stains",
        [](const py::array& image, int threads) {
            expect_threads(threads);
            const auto pixels = read_image<std::uint8_t>(image, "image");
            Stains stains;
            {
                const py::gil_scoped_release unlock;  // no Python object is touched below
                stains = fit_stains(pixels, threads);
            }
            py::array_t<double> vectors(Shape{2, 3});
            py::array_t<double> strengths(Shape{2});
            std::copy_n(stains.vectors[0], 6, vectors.mutable_data());
            std::copy_n(stains.strengths, 2, strengths.mutable_data());
            return py::make_tuple(vectors, strengths);
        },
        "image"_a.noconvert(), "threads"_a);
    m.def(
        "normalize_stain",
        [](const py::array& image, const py::array& source_vectors, const py::array& source_strengths,
           const py::array& target_vectors, const py::array& target_strengths, py::array& out, int threads) {
            expect_threads(threads);
            const auto pixels = read_image<std::uint8_t>(image, "image");
            const auto source = read_stains(source_vectors, source_strengths, "source");
            const auto target = read_stains(target_vectors, target_strengths, "target");
            const auto to = write_image<std::uint8_t>(out, "out", shape_of(image));
            const py::gil_scoped_release unlock;  // no Python object is touched below
            normalize_stain(pixels, source, target, to, threads);
        },
        "image"_a.noconvert(), "source_vectors"_a.noconvert(), "source_strengths"_a.noconvert(),
        "target_vectors"_a.noconvert(), "target_strengths"_a.noconvert(), "out"_a.noconvert(), "threads"_a);
}

}  // namespace nucfast::bindings
