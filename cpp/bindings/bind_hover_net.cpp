#include "arrays.hpp"
#include "nucfast/hover_net.hpp"

namespace nucfast::bindings {

using namespace py::literals;

void bind_hover_net(py::module_& m) {
    m.def(
        "hover_net_labels",
        [](const py::array& probability, const py::array& hv, float nucleus_threshold, float edge_threshold,
           int min_px, int threads, py::array& labels) {
            expect_threads(threads);
            const auto nucleus = read<float>(probability, "nucleus_probability");
            const auto maps = read_image<float>(hv, "hv_map", Shape{nucleus.rows, nucleus.cols, 2});
            const auto out = write<Label>(labels, "out", shape_of(probability));
            const py::gil_scoped_release unlock;
            return hover_net_labels(nucleus, maps, {nucleus_threshold, edge_threshold, min_px}, threads, out);
        },
        "nucleus_probability"_a.noconvert(), "hv_map"_a.noconvert(), "nucleus_threshold"_a,
        "edge_threshold"_a, "min_px"_a, "threads"_a, "out"_a.noconvert());
}

}  // namespace nucfast::bindings
