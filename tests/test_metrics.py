from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from pycocotools import mask as coco
from scipy import ndimage
from stardist.matching import matching, matching_dataset

import reference
from nucfast.metrics import AP_THRESHOLDS, Evaluator, evaluate, vote_types
from nucfast.ops.overlap import match, overlaps

CONSEP = {1: "other", 2: "inflammatory", 3: "epithelial", 4: "spindle"}
FROM_RAW = np.array([0, 1, 2, 3, 3, 4, 4, 4], dtype=np.uint8)


def perturb(true: np.ndarray, seed: int) -> np.ndarray:
    """Make a plausible prediction of a label map: nuclei shift, shrink, grow, split, merge, go and come."""
    rng = np.random.default_rng(seed)
    pred = np.zeros_like(true)
    boxes = ndimage.find_objects(true)
    number = 1
    for label, box in enumerate(boxes, start=1):
        if box is None or rng.random() < 0.1:
            continue
        rows, cols = (slice(max(0, s.start - 3), s.stop + 3) for s in box)
        mask = true[rows, cols] == label
        action = rng.integers(5)
        if action == 0:
            mask = ndimage.binary_erosion(mask)
        elif action == 1:
            mask = ndimage.binary_dilation(mask, iterations=2)
        elif action == 2:
            mask = np.roll(mask, rng.integers(-3, 4, 2), (0, 1))
        window = pred[rows, cols]
        window[mask] = number
        if action == 3:  # split into halves of different id
            window[mask & (np.arange(mask.shape[0])[:, None] * 2 < mask.shape[0])] = number + 1
        if action != 4 or rng.random() < 0.7:  # else the next nucleus gets the same id
            number += 2
    for _ in range(5):
        row, col = rng.integers(0, np.array(true.shape) - 9)
        pred[row : row + 9, col : col + 9] = number
        number += 2
    return pred


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def val_ids(dataset: Path) -> list[str]:
    with (dataset / "manifest.csv").open(newline="") as file:
        return [row["id"] for row in csv.DictReader(file) if row["split"] == "val"]


@pytest.fixture(scope="module")
def pairs(data_dir: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Crops of real label maps and perturbed copies of them; the last one has no true nucleus."""
    consep, dsb2018 = data_dir / "consep", data_dir / "dsb2018"
    truths = [read(consep / f"labels/{i}.png")[300:560, 200:460] for i in val_ids(consep)]
    truths += [read(dsb2018 / f"labels/{i}.png")[:256, :256] for i in val_ids(dsb2018)[::11]]
    found = [(true.astype(np.int32), perturb(true.astype(np.int32), i)) for i, true in enumerate(truths)]
    return [*found, (np.zeros_like(found[0][0]), found[0][1])]


@pytest.fixture(scope="module")
def typed(data_dir: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """True and predicted labels, true and predicted class maps of CoNSeP crops."""
    consep, images = data_dir / "consep", []
    for seed, name in enumerate(val_ids(consep)):
        crop = np.s_[200:500, 500:800]
        true = read(consep / f"labels/{name}.png")[crop].astype(np.int32)
        true_types = FROM_RAW[read(consep / f"types/{name}.png")[crop]]
        pred = perturb(true, seed)
        # Classes move with blocks of the image: many nuclei get a wrong one, some two.
        noise = (
            np.random.default_rng(seed).integers(0, 5, (10, 10), dtype=np.uint8).repeat(30, 0).repeat(30, 1)
        )
        pred_types = np.where(noise > 2, noise, true_types).astype(np.uint8)
        images.append((true, pred, true_types, pred_types))
    return images


def test_equals_the_published_formulas(pairs):
    evaluator = Evaluator()
    pooled = np.zeros(4)
    per_image = []
    for true, pred in pairs:
        found = evaluator.add(true, pred)
        counts = reference.panoptic_counts(true, pred)
        pooled += counts
        pq, dq, sq = reference.panoptic(*counts)
        precision = [reference.average_precision(true, pred, k / 20) for k in range(10, 20)]
        expected = {
            "dice": reference.dice(true, pred),
            "aji": reference.aggregated_jaccard(true, pred, one_to_one=False),
            "aji_plus": reference.aggregated_jaccard(true, pred, one_to_one=True),
            "pq": pq,
            "dq": dq,
            "sq": sq,
            "ap50": precision[0],
            "ap": np.mean(precision),
        }
        per_image.append(expected)
        for name, value in expected.items():
            assert_allclose(getattr(found, name), value, rtol=1e-9, atol=1e-12, err_msg=name)
    scores = evaluator.scores()
    for name in per_image[0]:
        mean = np.mean([image[name] for image in per_image])
        assert_allclose(getattr(scores, name), mean, rtol=1e-9, err_msg=name)
    assert_allclose(scores.pq_pooled, reference.panoptic(*pooled)[0], rtol=1e-9)
    assert 0.3 < scores.pq < 0.9  # the perturbation is neither harmless nor hopeless


def test_equals_stardist(pairs):
    for true, pred in pairs:
        image = Evaluator().add(true, pred)
        results = matching(true, pred, thresh=list(AP_THRESHOLDS))
        assert_allclose(image.ap50, results[0].accuracy, rtol=1e-9)
        assert_allclose(image.ap, np.mean([result.accuracy for result in results]), rtol=1e-9)
        # StarDist holds IoUs in float32 and matches at >=, which is the same where no IoU is 0.5.
        if not (overlaps(true, pred).iou == 0.5).any():
            assert_allclose(image.pq, results[0].panoptic_quality, rtol=1e-6)
            assert_allclose(image.dq, results[0].f1, rtol=1e-9)
    true, pred = zip(*pairs, strict=True)
    dataset = matching_dataset(true, pred, thresh=0.5, show_progress=False)
    assert_allclose(evaluate(true, pred).f1_50, dataset.f1, rtol=1e-9)


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.35, 0.5, 0.8])
def test_number_of_matches_equals_stardist(pairs, threshold):
    for true, pred in pairs:
        found, expected = match(true, pred, iou_threshold=threshold), matching(true, pred, thresh=threshold)
        assert (found.tp, found.fp, found.fn) == (expected.tp, expected.fp, expected.fn)


def test_equals_pycocotools(pairs):
    for true, pred in pairs[:6]:
        true_ids, pred_ids = reference.ids_of(true), reference.ids_of(pred)
        encode = [
            coco.encode(np.asfortranarray((labels[:, :, None] == ids).astype(np.uint8)))
            for labels, ids in ((true, true_ids), (pred, pred_ids))
        ]
        expected = coco.iou(encode[1], encode[0], [0] * len(true_ids)).T
        found = overlaps(true, pred)
        iou = np.zeros((len(true_ids), len(pred_ids)))
        iou[np.searchsorted(true_ids, found.true_id), np.searchsorted(pred_ids, found.pred_id)] = found.iou
        assert_allclose(iou, expected, rtol=1e-12)
        # Above 0.5 all pairs are matches, whatever the order of COCO's greedy choice.
        counts = [np.count_nonzero(expected >= threshold) for threshold in AP_THRESHOLDS[1:]]
        precision = [tp / (sum(iou.shape) - tp) for tp in counts]
        image = Evaluator().add(true, pred)
        assert_allclose(image.ap * 10 - image.ap50, sum(precision), rtol=1e-9)


def test_classes_equal_the_published_formulas(typed):
    true, pred, true_types, pred_types = zip(*typed, strict=True)
    scores = evaluate(true, pred, true_types=true_types, pred_types=pred_types, classes=CONSEP, radius_px=6)
    images, agreeing = [], 0
    for t, p, t_types, p_types in typed:
        of_true = {i: reference.majority_type(t, t_types, i) for i in reference.ids_of(t)}
        of_pred = {i: reference.majority_type(p, p_types, i) for i in reference.ids_of(p)}
        assert vote_types(t, t_types) == of_true
        assert vote_types(p, p_types) == of_pred
        found = reference.detection_pairs(t, p, radius_px=6)
        agreeing += sum(of_true[i] == of_pred[j] for i, j in found)
        images.append((found, of_true, of_pred))
    paired = sum(len(found) for found, _, _ in images)
    nuclei = sum(len(of_true) + len(of_pred) for _, of_true, of_pred in images)
    assert_allclose(scores.f1_detection, 2 * paired / nuclei, rtol=1e-9)
    assert_allclose(scores.type_accuracy, agreeing / paired, rtol=1e-9)
    assert list(scores.per_class) == list(CONSEP.values())
    for number, name in CONSEP.items():
        counts = np.zeros(4)
        for (t, p, _, _), (_, of_true, of_pred) in zip(typed, images, strict=True):
            only = [np.isin(m, [i for i in c if c[i] == number]) * m for m, c in ((t, of_true), (p, of_pred))]
            counts += reference.panoptic_counts(*only)
        pq, dq, sq = reference.panoptic(*counts)
        found = scores.per_class[name]
        assert_allclose([found.pq, found.dq, found.sq], [pq, dq, sq], rtol=1e-9)
        assert_allclose(found.f1, reference.type_f1(images, number), rtol=1e-9)
        assert (found.true_nuclei, found.pred_nuclei) == (counts[0] + counts[2], counts[0] + counts[1])
    assert_allclose(scores.mpq, np.mean([c.pq for c in scores.per_class.values()]), rtol=1e-9)


def test_all_forms_of_types_give_the_same(typed):
    true, pred, true_types, pred_types = typed[0]
    by_pixel = evaluate(true, pred, true_types=true_types, pred_types=pred_types)
    of_true, of_pred = vote_types(true, true_types), vote_types(pred, pred_types)
    assert evaluate(true, pred, true_types=of_true, pred_types=of_pred).as_dict() == by_pixel.as_dict()
    table = np.zeros(max(of_pred) + 1, dtype=np.uint8)
    table[list(of_pred)] = list(of_pred.values())
    assert evaluate(true, pred, true_types=of_true, pred_types=table).as_dict() == by_pixel.as_dict()
    single = evaluate([true], [pred], true_types=[of_true], pred_types=[table])
    assert single.as_dict() == by_pixel.as_dict()


def test_vote_ignores_unclassified_pixels_and_breaks_ties_downwards():
    labels = np.array([[1, 1, 1, 1, 7, 7, 9, 9]], dtype=np.int32)
    types = np.array([[0, 0, 0, 5, 4, 3, 0, 0]], dtype=np.uint8)
    assert vote_types(labels, types) == {1: 5, 7: 3, 9: 0}


def test_a_perfect_prediction_scores_one(typed):
    true, _, types, _ = typed[0]
    renumbered = np.where(true > 0, 3 * true + 11, 0)  # int64, other ids
    scores = evaluate(true.astype(np.uint16), renumbered, true_types=types, pred_types=types).as_dict()
    per_class = scores.pop("per_class")
    ones = ["dice", "aji", "aji_plus", "pq", "dq", "sq", "f1_50", "ap50", "ap", "pq_pooled", "mpq"]
    ones += ["f1_detection", "type_accuracy"]
    assert [scores[name] for name in ones] == [1.0] * len(ones)
    assert all(found["pq"] == found["f1"] == 1.0 for found in per_class.values())


def test_empty_images_are_left_out_of_means():
    blank, one = np.zeros((8, 8), np.int32), np.zeros((8, 8), np.int32)
    one[2:5, 2:5] = 1
    perfect = evaluate([one, blank], [one, blank])
    assert (perfect.images, perfect.empty_images, perfect.pq, perfect.dice) == (2, 1, 1.0, 1.0)
    for true, pred in ((one, blank), (blank, one)):
        wrong = evaluate([one, true], [one, pred])
        names = ("dice", "aji", "aji_plus", "pq", "dq", "sq", "ap50", "ap")
        assert [getattr(wrong, name) for name in names] == [0.5] * 8
        assert (wrong.f1_50, wrong.f1_detection, wrong.pq_pooled) == (2 / 3, 2 / 3, 2 / 3)
    nothing = evaluate(blank, blank, true_types={}, pred_types={}, classes={1: "a"})
    assert math.isnan(nothing.pq) and math.isnan(nothing.f1_50) and math.isnan(nothing.mpq)
    found = json.loads(json.dumps(nothing.as_dict(), allow_nan=False))
    assert (found["images"], found["pq"], found["mpq"]) == (1, None, None)
    assert found["per_class"]["a"]["pq"] is None


def test_exact_halves_count_at_half_iou_but_not_above():
    whole = np.ones((4, 4), np.int32)
    halves = np.repeat(np.array([[1, 1, 2, 2]], np.int32), 4, axis=0)
    scores = evaluate(whole, halves)
    assert (scores.pq, scores.ap50, scores.f1_50, scores.ap) == (0.0, 1 / 2, 2 / 3, 1 / 20)
    assert scores.aji == 8 / 24


def test_one_shared_prediction_counts_twice_in_aji_and_once_in_aji_plus():
    true = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    pred = np.array([[4, 4, 4, 4, 4, 4]], np.int32)
    scores = evaluate(true, pred)
    assert_allclose([scores.aji, scores.aji_plus], [5 / 12, 3 / 8])


def test_absent_classes_are_null_and_outside_mpq():
    labels = np.array([[1, 0, 2]], np.int32)
    types = {1: 1, 2: 0}
    scores = evaluate(labels, labels, true_types=types, pred_types=types, classes={1: "a", 2: "b"})
    assert scores.per_class["a"].pq == scores.mpq == 1.0
    assert math.isnan(scores.per_class["b"].pq) and math.isnan(scores.per_class["b"].f1)
    assert list(evaluate(labels, labels, true_types=types, pred_types=types).per_class) == ["1"]


def test_without_a_radius_there_is_no_detection_score():
    labels = np.array([[1, 0, 2]], np.int32)
    types = {1: 1, 2: 1}
    scores = evaluate(
        [labels, labels],
        [labels, labels],
        true_types=[types] * 2,
        pred_types=[types] * 2,
        radius_px=[12.0, None],
    )
    assert math.isnan(scores.f1_detection) and math.isnan(scores.type_accuracy)
    assert math.isnan(scores.per_class["1"].f1) and scores.per_class["1"].pq == 1.0


def test_bad_arguments_are_named_and_change_nothing():
    labels = np.array([[1, 0, 2]], np.int32)
    types = {1: 1, 2: 3}
    with pytest.raises(TypeError, match="true: expected an array of integers, got float64"):
        evaluate(labels * 1.0, labels)
    with pytest.raises(TypeError, match="true: expected an array of integers, got bool"):
        evaluate(labels > 0, labels)
    with pytest.raises(ValueError, match="pred: expected values within int32, got 4294967296"):
        evaluate(labels, labels.astype(np.int64) << 31)
    with pytest.raises(ValueError, match="true: expected ids >= 0, got -1"):
        evaluate(-labels, labels)
    with pytest.raises(ValueError, match=r"pred: expected shape \(1, 3\), got \(3, 1\)"):
        evaluate(labels, labels.T)
    with pytest.raises(TypeError, match="pred: expected a label map if true is one"):
        evaluate(labels, [labels])
    with pytest.raises(ValueError, match="true: expected at least one label map"):
        evaluate([], [])
    with pytest.raises(ValueError, match=r"pred: expected one entry per image \(1\), got 2"):
        evaluate([labels], [labels, labels])
    with pytest.raises(TypeError, match="true_types: expected a list with an entry per image, got dict"):
        evaluate([labels], [labels], true_types=types, pred_types=[types])
    with pytest.raises(ValueError, match="true_types, pred_types: expected both or none"):
        evaluate(labels, labels, true_types=types)
    with pytest.raises(ValueError, match="pred_types: expected a class for every nucleus, got none for id 2"):
        evaluate(labels, labels, true_types=types, pred_types={1: 1})
    with pytest.raises(ValueError, match="true_types: expected a class for every id up to 2, got 2 entries"):
        evaluate(labels, labels, true_types=np.array([0, 1]), pred_types=types)
    with pytest.raises(
        ValueError, match=r"true_types: expected shape \(1, 3\) or one dimension, got \(3, 1\)"
    ):
        evaluate(labels, labels, true_types=labels.T, pred_types=types)
    with pytest.raises(ValueError, match="true_types: expected classes >= 0, got -1"):
        evaluate(labels, labels, true_types={1: -1, 2: 1}, pred_types=types)
    with pytest.raises(ValueError, match=r"true_types: expected classes \[1, 2\], got 3"):
        evaluate(labels, labels, true_types=types, pred_types=types, classes={1: "a", 2: "b"})
    with pytest.raises(ValueError, match="classes: expected ids >= 1, got 0"):
        evaluate(labels, labels, classes={0: "background"})
    with pytest.raises(ValueError, match="classes: expected different names"):
        evaluate(labels, labels, classes={1: "a", 2: "a"})
    with pytest.raises(ValueError, match="radius_px: expected at least 0, got -1"):
        evaluate(labels, labels, radius_px=-1)
    with pytest.raises(ValueError, match="pred_types: expected classes >= 0, got -2"):
        evaluate(labels, labels, true_types=types, pred_types=-labels)
    with pytest.raises(ValueError, match="types: expected shape"):
        vote_types(labels, labels.T)

    evaluator = Evaluator(classes={1: "a"})
    evaluator.add(labels, labels)
    with pytest.raises(ValueError, match="true_types: expected classes for all images or for none"):
        evaluator.add(labels, labels, true_types=types, pred_types=types)
    with pytest.raises(ValueError, match="true: expected ids >= 0"):
        evaluator.add(-labels, labels)
    assert evaluator.scores().as_dict() == evaluate(labels, labels, classes={1: "a"}).as_dict()
    with pytest.raises(ValueError, match="scores: expected at least one image"):
        Evaluator().scores()


def test_import_is_light():
    code = (
        "import sys, nucfast.metrics; print(*sorted({'scipy', 'PIL', 'torch', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
