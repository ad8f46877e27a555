#include <pybind11/pybind11.h>

namespace nucfast::bindings {

namespace py = pybind11;

void bind_components(py::module_& m);
void bind_contours(py::module_& m);
void bind_dispatch(py::module_& m);
void bind_distance(py::module_& m);
void bind_geojson(py::module_& m);
void bind_hover_net(py::module_& m);
void bind_outline(py::module_& m);
void bind_overlap(py::module_& m);
void bind_properties(py::module_& m);
void bind_rasterize(py::module_& m);
void bind_split(py::module_& m);
void bind_stain(py::module_& m);
void bind_tiles(py::module_& m);
void bind_watershed(py::module_& m);

}  // namespace nucfast::bindings

PYBIND11_MODULE(_core, m) {
    using namespace nucfast::bindings;
    m.doc() = "C++ kernels of nucfast; use them through nucfast.ops";
    bind_components(m);
    bind_contours(m);
    bind_dispatch(m);
    bind_distance(m);
    bind_geojson(m);
    bind_hover_net(m);
    bind_outline(m);
    bind_overlap(m);
    bind_properties(m);
    bind_rasterize(m);
    bind_split(m);
    bind_stain(m);
    bind_tiles(m);
    bind_watershed(m);
}
