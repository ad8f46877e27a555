#include "arrays.hpp"
#include "nucfast/split.hpp"

namespace nucfast::bindings {

using namespace py::literals;

void bind_split(py::module_& m) {
    m.def(
        "split_instances",
        [](const py::array& height, const py::array& mask, int min_rise, py::array& nuclei) {
            const auto heights = read<std::uint8_t>(height, "height");
            const auto inside = read<bool>(mask, "mask", shape_of(height));
            const auto out = write<Label>(nuclei, "out", shape_of(height));
            const py::gil_scoped_release unlock;
            return split_instances(heights, inside, min_rise, out);
        },
        "height"_a.noconvert(), "mask"_a.noconvert(), "min_rise"_a, "out"_a.noconvert());
    m.def(
        "find_nuclei",
        [](const py::array& probability, const py::array& height, int threshold, int min_rise,
           double peak_share, double max_hole_px, double min_area_px, py::array& nuclei) {
            const auto probabilities = read<std::uint8_t>(probability, "probability");
            const auto heights = read<std::uint8_t>(height, "height", shape_of(probability));
            const auto out = write<Label>(nuclei, "out", shape_of(probability));
            const py::gil_scoped_release unlock;
            return find_nuclei(probabilities, heights,
                               {threshold, min_rise, peak_share, max_hole_px, min_area_px}, out);
        },
        "probability"_a.noconvert(), "height"_a.noconvert(), "threshold"_a, "min_rise"_a, "peak_share"_a,
        "max_hole_px"_a, "min_area_px"_a, "out"_a.noconvert());
}

}  // namespace nucfast::bindings
