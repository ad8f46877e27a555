#include "arrays.hpp"
#include "nucfast/outline.hpp"

namespace nucfast::bindings {

using namespace pybind11::literals;

void bind_outline(py::module_& m) {
    m.def(
        "draw_outlines",
        [](const py::array& vertices, const py::array& offsets, const py::array& colors, double width,
           py::array& picture) {
            const auto points = read_points(vertices, "vertices");
            const auto shades = read<std::uint8_t>(colors, "colors", Shape{colors.size() / 3, 3});
            const auto* first = read_column<std::int64_t>(offsets, "offsets", Shape{shades.rows + 1});
            const auto image = write_image<std::uint8_t>(
                picture, "picture",
                picture.ndim() == 3 ? Shape{picture.shape(0), picture.shape(1), 3} : Shape{0, 0, 3});
            const py::gil_scoped_release unlock;  // no Python object is touched below
            draw_outlines(points, first, shades, width, image);
        },
        "vertices"_a.noconvert(), "offsets"_a.noconvert(), "colors"_a.noconvert(), "width"_a,
        "picture"_a.noconvert());
}

}  // namespace nucfast::bindings
