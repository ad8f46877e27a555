#include "arrays.hpp"
#include "nucfast/overlap.hpp"

#include <pybind11/stl.h>

namespace nucfast::bindings {

using namespace pybind11::literals;

namespace {

template <typename T>
py::array_t<T> flat(std::vector<T>&& values) {
    const auto size = static_cast<py::ssize_t>(values.size());
    return to_numpy(std::move(values), Shape{size});
}

// Fields of a result, moved into NumPy; the order is that of the dataclass in ops/overlap.py.
py::tuple to_tuple(Overlaps&& found) {
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

}  // namespace

void bind_overlap(py::module_& m) {
    m.def(
        "overlaps",
        [](const py::array& truth, const py::array& pred, int threads) {
            expect_threads(threads);
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
            const auto areas_of = [](const py::array& ids, const py::array& areas) {
                return Areas{read_column<std::int64_t>(ids, "ids"),
                             read_column<std::int64_t>(areas, "areas", shape_of(ids)), ids.shape(0)};
            };
            const auto shape = shape_of(true_id);
            const ScoredPairs pairs{read_column<std::int64_t>(true_id, "true_id"),
                                    read_column<std::int64_t>(pred_id, "pred_id", shape),
                                    read_column<std::int64_t>(count, "count", shape),
                                    read_column<double>(iou, "iou", shape), true_id.shape(0)};
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
            const auto* const truths = read_column<std::int64_t>(true_id, "true_id");
            const auto* const preds = read_column<std::int64_t>(pred_id, "pred_id", shape_of(true_id));
            const auto* const weights = read_column<double>(weight, "weight", shape_of(true_id));
            const std::ptrdiff_t count = true_id.shape(0);
            std::vector<std::int64_t> picked;
            {
                const py::gil_scoped_release unlock;
                picked = match_pairs(truths, preds, weights, count);
            }
            return flat(std::move(picked));
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
            return flat(std::move(partner));
        },
        "true"_a.noconvert(), "pred"_a.noconvert());
}

}  // namespace nucfast::bindings
