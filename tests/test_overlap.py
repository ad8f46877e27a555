from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import reference
from nucfast import _core
from nucfast.ops.overlap import instance_sums, match, match_points, overlaps
from nucfast.testing import random_blobs

TOP = 2**31 - 1


@st.composite
def label_maps(draw):
    """Two maps of blocky labels with ids that have gaps and reach the largest one."""
    rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 140))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.array([0, 0, 1, 2, 3, 70, 1_000_003, TOP - 1, TOP], dtype=np.int32)

    def one():
        return np.repeat(rng.choice(ids, (rows, cols)), rng.integers(1, 4), axis=1)[:, :cols].copy()

    return one(), one()


@settings(max_examples=60, deadline=None)
@given(label_maps())
def test_overlaps_equal_reference(maps):
    true, pred = maps
    found = overlaps(true, pred)
    true_ids, pred_ids = reference.ids_of(true), reference.ids_of(pred)
    shared, union = reference.overlap_matrices(true, pred)
    i, j = np.nonzero(shared)
    assert_array_equal(found.true_ids, true_ids)
    assert_array_equal(found.pred_ids, pred_ids)
    assert_array_equal(found.true_areas, [(true == t).sum() for t in true_ids])
    assert_array_equal(found.pred_areas, [(pred == q).sum() for q in pred_ids])
    assert_array_equal(found.true_id, np.array(true_ids, dtype=np.int64)[i])
    assert_array_equal(found.pred_id, np.array(pred_ids, dtype=np.int64)[j])
    assert_array_equal(found.count, shared[i, j])
    assert_array_equal(found.iou, shared[i, j] / union[i, j])
    for centroid, t in zip(found.true_centroids, true_ids, strict=True):
        assert_allclose(centroid, np.argwhere(true == t).mean(axis=0), rtol=1e-12)
    for centroid, q in zip(found.pred_centroids, pred_ids, strict=True):
        assert_allclose(centroid, np.argwhere(pred == q).mean(axis=0), rtol=1e-12)


def test_instruction_sets_give_the_same_overlaps(isa):
    true = random_blobs((90, 131), count=80, seed=0)
    pred = np.roll(true, 2, axis=0)
    found = overlaps(true, pred)
    _core.set_isa("baseline")
    for name, values in vars(overlaps(true, pred)).items():
        assert_array_equal(getattr(found, name), values)


def test_threads_and_many_pairs_give_the_same_result():
    true = random_blobs((500, 700), count=3000, seed=0)
    pred = np.roll(true, 3, axis=1)
    expected = overlaps(true, pred)
    assert len(expected.count) > 2000  # the table of pairs has grown
    key, count = np.unique(true.astype(np.int64) << 32 | pred, return_counts=True)
    both = (key >> 32 > 0) & (key & 0xFFFFFFFF > 0)
    assert_array_equal(expected.true_id << 32 | expected.pred_id, key[both])
    assert_array_equal(expected.count, count[both])
    for threads in (2, 3, 64):
        found = overlaps(true, pred, threads=threads)
        for name, values in vars(expected).items():
            assert_array_equal(getattr(found, name), values)


@settings(max_examples=60, deadline=None)
@given(label_maps())
def test_instance_sums_equal_reference(maps):
    true, pred = maps
    found = overlaps(true, pred)
    thresholds = [0.5, 0.75, 1.0]
    sums = instance_sums(found, thresholds=thresholds)
    tp, _, _, total = reference.panoptic_counts(true, pred)
    assert sums.good == tp
    assert_allclose(sums.good_iou, total, rtol=1e-12)
    shared, union = reference.overlap_matrices(true, pred)
    iou = shared / np.maximum(union, 1)
    pairs = reference.match(iou, 0.5)
    assert sums.matched == [sum(iou[i, j] >= t for i, j in pairs) for t in thresholds]
    assert_allclose(sums.matched_iou, sum(iou[i, j] for i, j in pairs), rtol=1e-12)
    if sums.best_union:
        best = reference.aggregated_jaccard(true, pred, one_to_one=False)
        assert_allclose(sums.best_shared / sums.best_union, best, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(label_maps(), st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.75, 1.0]))
def test_match_equals_reference(maps, threshold):
    true, pred = maps
    shared, union = reference.overlap_matrices(true, pred)
    iou = shared / np.maximum(union, 1)
    expected = reference.match(iou, threshold)
    found = match(true, pred, iou_threshold=threshold)
    assert found.tp == len(expected)
    assert_allclose(found.iou.sum(), sum(iou[i, j] for i, j in expected), rtol=1e-12)
    assert (found.iou >= threshold).all()
    assert len(set(found.true_id.tolist())) == len(set(found.pred_id.tolist())) == found.tp
    assert sorted([*found.true_id, *found.missed_true]) == reference.ids_of(true)
    assert sorted([*found.pred_id, *found.extra_pred]) == reference.ids_of(pred)

    found = overlaps(true, pred)
    most = _core.match_pairs(found.true_id, found.pred_id, found.iou)
    expected = reference.best_pairs(iou)
    assert_allclose(found.iou[most].sum(), sum(iou[i, j] for i, j in expected), rtol=1e-12)


@pytest.mark.parametrize("fill", [0.05, 0.6])
def test_match_of_large_tangles_equals_reference(fill):
    rng = np.random.default_rng(5)
    true = np.where(rng.random((80, 80)) < fill, rng.integers(1, 60, (80, 80)), 0).astype(np.int32)
    pred = np.where(rng.random((80, 80)) < fill, rng.integers(1, 60, (80, 80)), 0).astype(np.int32)
    shared, union = reference.overlap_matrices(true, pred)
    iou = shared / union
    found = overlaps(true, pred)
    most = found.iou[_core.match_pairs(found.true_id, found.pred_id, found.iou)]
    matched = match(true, pred, iou_threshold=0.0).iou
    for ious, expected in ((matched, reference.match(iou, 0.0)), (most, reference.best_pairs(iou))):
        assert_allclose(ious.sum(), sum(iou[i, j] for i, j in expected), rtol=1e-9)


def test_a_nucleus_matches_one_of_its_halves_at_one_half():
    whole = np.full((4, 4), 9, dtype=np.int32)
    halves = np.repeat(np.array([[5, 5, 6, 6]], dtype=np.int32), 4, axis=0)
    assert overlaps(whole, halves).iou.tolist() == [0.5, 0.5]
    for true, pred in ((whole, halves), (halves, whole)):
        found = match(true, pred)
        assert (found.tp, found.fp + found.fn) == (1, 1)


def test_more_pairs_come_before_better_pairs():
    # True 1 and predicted 1 overlap most (9/11); each also touches another nucleus (1/10).
    true = np.array([[1] * 10 + [2]], dtype=np.int32)
    pred = np.array([[2] + [1] * 10], dtype=np.int32)
    found = overlaps(true, pred)
    assert found.iou.tolist() == [9 / 11, 1 / 10, 1 / 10]
    assert match(true, pred, iou_threshold=0.1).tp == 2
    assert match(true, pred, iou_threshold=0.2).tp == 1


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (63, 64), (3, 65)])
def test_empty_and_full_maps(shape):
    nothing, all_one = np.zeros(shape, np.int32), np.full(shape, TOP, np.int32)
    pixels = nothing.size
    assert overlaps(nothing, nothing).true_ids.size == 0
    found = overlaps(all_one, all_one)
    assert found.count.tolist() == ([pixels] if pixels else [])
    missed = match(all_one, nothing)
    assert (missed.tp, missed.fp, missed.fn) == (0, 0, min(pixels, 1))


def test_views_and_read_only_maps_are_read():
    base = np.arange(48, dtype=np.int32).reshape(6, 8) // 3
    base.flags.writeable = False
    view = base[:, ::2]
    assert_array_equal(overlaps(view, view).true_ids, reference.ids_of(view))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_match_points_equals_scipy(true_count, pred_count, seed):
    rng = np.random.default_rng(seed)
    true, pred = rng.random((true_count, 2)) * 9, rng.random((pred_count, 2)) * 9
    distance = np.linalg.norm(true[:, None] - pred[None], axis=2)
    rows, cols = reference.linear_sum_assignment(distance)
    expected = np.full(true_count, -1)
    expected[rows] = np.where(distance[rows, cols] <= 2.5, cols, -1)
    assert_array_equal(match_points(true, pred, radius_px=2.5), expected)


def test_real_maps_count_as_numpy_unique_does(real_labels):
    true, pred = real_labels, real_labels.T
    found = overlaps(true, pred)
    key, count = np.unique(true.astype(np.int64) << 32 | pred, return_counts=True)
    both = (key >> 32 > 0) & (key & 0xFFFFFFFF > 0)
    assert_array_equal(found.true_id << 32 | found.pred_id, key[both])
    assert_array_equal(found.count, count[both])
    assert_array_equal(found.pred_areas, np.unique(pred, return_counts=True)[1][1:])


def test_bad_arguments_are_named():
    good = np.ones((2, 2), np.int32)
    with pytest.raises(TypeError, match="true: expected int32, got uint16"):
        overlaps(good.astype(np.uint16), good)
    with pytest.raises(ValueError, match=r"pred: expected shape \(2, 2\), got \(2, 3\)"):
        overlaps(good, np.ones((2, 3), np.int32))
    with pytest.raises(ValueError, match="true: expected 2 dimensions"):
        overlaps(good[0], good[0])
    with pytest.raises(ValueError, match="pred: expected ids >= 0, got -4"):
        overlaps(good, np.where([[1, 0], [0, 0]], np.int32(-4), good))
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        overlaps(good, good, threads=0)
    with pytest.raises(ValueError, match=r"thresholds: expected 0.5 to 1, got 0.4"):
        instance_sums(overlaps(good, good), thresholds=[0.4])
    with pytest.raises(ValueError, match=r"iou_threshold: expected 0 to 1, got 1\.5"):
        match(good, good, iou_threshold=1.5)
    with pytest.raises(ValueError, match="iou_threshold: expected 0 to 1, got nan"):
        match(good, good, iou_threshold=float("nan"))
    points = np.zeros((3, 2))
    with pytest.raises(TypeError, match="pred: expected float64, got float32"):
        match_points(points, points.astype(np.float32), radius_px=1.0)
    with pytest.raises(ValueError, match=r"true: expected shape \(N, 2\), got \(2, 3\)"):
        match_points(points.T, points, radius_px=1.0)
    with pytest.raises(ValueError, match="true: expected finite coordinates, got nan"):
        match_points(points * np.nan, points, radius_px=1.0)
    with pytest.raises(ValueError, match="radius_px: expected at least 0, got -1"):
        match_points(points, points, radius_px=-1)
