"""AP 0.50:0.95, PQ and AJI of two label maps."""

import numpy as np

from harness import Bar, Peer
from inputs import dense_labels, dense_prediction, real_maps
from nucfast.metrics.scores import AP_THRESHOLDS
from nucfast.ops.overlap import instance_sums, overlaps


def scores(tp, true, pred, good, good_iou, shared, union):
    """AP, PQ and AJI from what they are made of."""
    if true + pred == 0:
        return 0.0, 0.0, 0.0
    ap = np.mean([count / (true + pred - count) for count in tp])
    return float(ap), 2 * good_iou / (true + pred), shared / union


def nucfast_scores(true, pred, threads):
    found = overlaps(true, pred, threads=threads)
    sums = instance_sums(found, thresholds=AP_THRESHOLDS)
    nuclei = len(found.true_ids), len(found.pred_ids)
    return scores(sums.matched, *nuclei, sums.good, sums.good_iou, sums.best_shared, sums.best_union)


def numpy_scores(true, pred):
    """Pairs by ``np.unique`` over runs of equal pairs, which is several times faster than over pixels."""
    true, pred = true.ravel(), pred.ravel()
    starts = np.flatnonzero(np.diff(true, prepend=-1) | np.diff(pred, prepend=-1))
    keys, of = np.unique(true[starts].astype(np.int64) << 32 | pred[starts], return_inverse=True)
    count = np.bincount(of, np.diff(starts, append=true.size)).astype(np.int64)
    true_id, pred_id = keys >> 32, keys & 0xFFFFFFFF
    true_ids, true_of = np.unique(true_id, return_inverse=True)
    pred_ids, pred_of = np.unique(pred_id, return_inverse=True)
    true_areas = np.bincount(true_of, count).astype(np.int64)
    pred_areas = np.bincount(pred_of, count).astype(np.int64)
    both = (true_id > 0) & (pred_id > 0)
    true_of, pred_of, count = true_of[both], pred_of[both], count[both]
    iou = count / (true_areas[true_of] + pred_areas[pred_of] - count)
    best = np.lexsort((count, iou, true_of))
    best = best[np.append(np.diff(true_of[best]) != 0, True)[: best.size]]
    shared = count[best].sum()
    inside_true, inside_pred = true_areas[true_ids > 0], pred_areas[pred_ids > 0]
    twice = pred_areas[pred_of[best]].sum() - pred_areas[np.unique(pred_of[best])].sum()
    union = inside_true.sum() + inside_pred.sum() + twice - shared
    tp = []
    for threshold in AP_THRESHOLDS:
        hits = iou >= threshold
        tp.append(min(np.unique(true_of[hits]).size, np.unique(pred_of[hits]).size))
    good = iou[iou > 0.5]
    return scores(tp, inside_true.size, inside_pred.size, good.size, good.sum(), shared, union)


def stardist_scores(true, pred):
    from stardist.matching import matching

    found = matching(true, pred, thresh=AP_THRESHOLDS)
    return float(np.mean([at.accuracy for at in found])), found[0].panoptic_quality


def encoded(maps):
    """COCO data set of label maps; encoding is not timed, though it takes longer than all else."""
    from pycocotools import mask as coder

    images, annotations = [], []
    for number, labels in enumerate(maps, 1):
        images.append({"id": number, "height": labels.shape[0], "width": labels.shape[1]})
        for label in np.unique(labels[labels > 0]):
            mask = coder.encode(np.asfortranarray(labels == label).view(np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": mask,
                    "area": float(coder.area(mask)),
                    "bbox": coder.toBbox(mask).tolist(),
                    "iscrowd": 0,
                    "score": 1.0,
                }
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}


def coco_precision(library, truth, guess):
    """Evaluate with pycocotools or faster-coco-eval."""
    import contextlib
    import io

    if library == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluation
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for data in (truth, guess):
            side = COCO()
            side.dataset = data
            side.createIndex()
            sides.append(side)
        evaluation = Evaluation(*sides, iouType="segm")
        evaluation.params.maxDets = [1, 10, 10_000]
        evaluation.evaluate()
    return evaluation


def same(expected, found):
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def same_ap(expected, found):
    np.testing.assert_allclose(np.asarray(found)[:, 0], np.asarray(expected)[:, 0], rtol=1e-9)


def test_dense(compare):
    true, pred = dense_labels(4096), dense_prediction(4096)
    compare(
        kernel="AP 0.50:0.95 + PQ + AJI",
        data="dense 4096^2",
        pixels=true.size,
        nucfast=lambda threads: nucfast_scores(true, pred, threads),
        peers=[Peer("NumPy unique", lambda threads: numpy_scores(true, pred), same)],
        bars=[Bar(4, 6, 8)],
    )


def test_dsb2018(compare):
    true, pred = real_maps("dsb2018")
    data = {}

    def coco(library):
        def run(threads):
            if not data:
                data.update(truth=encoded(true), guess=encoded(pred))
            return coco_precision(library, data["truth"], data["guess"])

        return run

    pairs = list(zip(true, pred, strict=True))
    compare(
        kernel="AP 0.50:0.95 + PQ + AJI",
        data=f"all {len(true)} images of dsb2018",
        pixels=sum(labels.size for labels in true),
        nucfast=lambda threads: [nucfast_scores(t, p, threads) for t, p in pairs],
        peers=[
            Peer("NumPy unique", lambda threads: [numpy_scores(t, p) for t, p in pairs], same),
            Peer(
                "StarDist",
                lambda threads: [
                    stardist_scores(t, p) if t.any() or p.any() else (0.0, 0.0) for t, p in pairs
                ],
                same_ap,
                "no AJI; PQ with pairs of IoU 0.5",
            ),
            Peer(
                "pycocotools",
                coco("pycocotools"),
                lambda expected, found: None,
                "matches at 10 IoUs alone, from encoded masks; its AP is the area below a ranked curve",
            ),
            Peer(
                "faster-coco-eval",
                coco("faster-coco-eval"),
                lambda expected, found: None,
                "as pycocotools",
            ),
        ],
        bars=[Bar(4, 6, 8, peer="NumPy unique"), Bar(None, None, 40, peer="StarDist")],
    )
