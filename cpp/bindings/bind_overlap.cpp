#include "arrays.hpp"
#include "nucfast/overlap.hpp"

#include <pybind11/stl.h>

namespace nucfast::bindings {

using namespace pybind11::literals;

namespace {

// Fields of a result, moved into NumPy; the order is that of the dataclass in ops/overlap.py.
py::tuple to_tuple(Overlaps&& found) {
    const auto flat = [](auto&& values) {
        const auto size = static_cast<py::ssize_t>(values.size());
        return to_numpy(std::move(values), Shape{size});
    };
    const auto points = [](std::vector<double>&& values) {
        const auto size = static_cast<py::ssize_t>(values.size() / 2);
        return to_numpy(std::move(values), Shape{size, 2});
    };
    return py::make_tuple(flat(std::move(found.true_id)), flat(std::move(found.pred_id)),
                          flat(std::move(found.count)), flat(std::move(found.iou)),
                          flat(std::move(found.truth.ids)), flat(std::move(found.truth.areas)),
                          points(std::move(found.truth.centroids)), flat(std::move(found.pred.ids)),
                          flat(std::move(found.pred.areas)), points(std::move(found.pred.centroids)));
}

py::array_t<std::int64_t> to_numpy_1d(std::vector<std::int64_t>&& values) {
    const auto size = static_cast<py::ssize_t>(values.size());
    return to_numpy(std::move(values), Shape{size});
}

// (N, 2) points.
Plane<const double> read_points(const py::array& array, const char* name) {
    const auto points = read<double>(array, name);
    if (points.cols != 2) {
        throw py::value_error(std::string(name) + ": expected shape (N, 2), got " +
                              to_string(shape_of(array)));
    }
    return points;
}

}  // namespace

void bind_overlap(py::module_& m) {
    m.def(
        "overlaps",
        [](const py::array& truth, const py::array& pred, int threads) {
            const auto true_map = read<Label>(truth, "true");
            const auto pred_map = read<Label>(pred, "pred", shape_of(truth));
            Overlaps found;
            {
                const py::gil_scoped_release unlock;
                found = overlaps(true_map, pred_map, threads);
            }
            return to_tuple(std::move(found));
        },
        "true"_a.noconvert(), "pred"_a.noconvert(), "threads"_a);
    m.def(
        "instance_sums",
        [](const py::array& true_id, const py::array& pred_id, const py::array& count, const py::array& iou,
           const py::array& true_ids, const py::array& true_areas, const py::array& pred_ids,
           const py::array& pred_areas, const std::vector<double>& thresholds) {
            expect<std::int64_t>(true_id, "true_id", 1, {});
            expect<std::int64_t>(pred_id, "pred_id", 1, shape_of(true_id));
            expect<std::int64_t>(count, "count", 1, shape_of(true_id));
            expect<double>(iou, "iou", 1, shape_of(true_id));
            const auto areas_of = [](const py::array& ids, const py::array& areas) {
                expect<std::int64_t>(ids, "ids", 1, {});
                expect<std::int64_t>(areas, "areas", 1, shape_of(ids));
                return Areas{static_cast<const std::int64_t*>(ids.data()),
                             static_cast<const std::int64_t*>(areas.data()), ids.shape(0)};
            };
            const ScoredPairs pairs{static_cast<const std::int64_t*>(true_id.data()),
                                    static_cast<const std::int64_t*>(pred_id.data()),
                                    static_cast<const std::int64_t*>(count.data()),
                                    static_cast<const double*>(iou.data()), true_id.shape(0)};
            const Areas truth = areas_of(true_ids, true_areas);
            const Areas pred = areas_of(pred_ids, pred_areas);
            InstanceSums sums;
            {
                const py::gil_scoped_release unlock;
                sums = instance_sums(pairs, truth, pred, thresholds);
            }
            return py::make_tuple(sums.good, sums.good_iou, sums.matched, sums.matched_iou, sums.best_shared,
                                  sums.best_union, sums.one_to_one_shared, sums.one_to_one_union);
        },
        "true_id"_a.noconvert(), "pred_id"_a.noconvert(), "count"_a.noconvert(), "iou"_a.noconvert(),
        "true_ids"_a.noconvert(), "true_areas"_a.noconvert(), "pred_ids"_a.noconvert(),
        "pred_areas"_a.noconvert(), "thresholds"_a);
    m.def(
        "match_pairs",
        [](const py::array& true_id, const py::array& pred_id, const py::array& weight) {
            expect<std::int64_t>(true_id, "true_id", 1, {});
            expect<std::int64_t>(pred_id, "pred_id", 1, shape_of(true_id));
            expect<double>(weight, "weight", 1, shape_of(true_id));
            const auto* const truths = static_cast<const std::int64_t*>(true_id.data());
            const auto* const preds = static_cast<const std::int64_t*>(pred_id.data());
            const auto* const weights = static_cast<const double*>(weight.data());
            const std::ptrdiff_t count = true_id.shape(0);
            std::vector<std::int64_t> picked;
            {
                const py::gil_scoped_release unlock;
                picked = match_pairs(truths, preds, weights, count);
            }
            return to_numpy_1d(std::move(picked));
        },
        "true_id"_a.noconvert(), "pred_id"_a.noconvert(), "weight"_a.noconvert());
    m.def(
        "match_points",
        [](const py::array& truth, const py::array& pred) {
            const auto true_points = read_points(truth, "true");
            const auto pred_points = read_points(pred, "pred");
            std::vector<std::int64_t> partner;
            {
                const py::gil_scoped_release unlock;
                partner = match_points(true_points, pred_points);
            }
            return to_numpy_1d(std::move(partner));
        },
        "true"_a.noconvert(), "pred"_a.noconvert());
}

}  // namespace nucfast::bindings
