"""Splitting touching nuclei: seeds from a height map, then a marker-controlled watershed."""

import numpy as np

from harness import Bar, Peer
from inputs import dense_labels
from nucfast import ops

SIDE_PX, THRESHOLD = 4096, 60


def test_watershed(compare):
    true = dense_labels(SIDE_PX)
    mask = true > 0
    height = np.minimum(255, 12 * ops.distance_transform(true)).astype(np.uint8)
    elevation = 255 - height
    labels = np.empty(true.shape, np.int32)

    def ours(threads):
        ops.find_seeds(height, threshold=THRESHOLD, mask=mask, out=labels, threads=threads)
        return ops.watershed(elevation, labels, mask=mask, out=labels, threads=threads)

    def scikit_image(threads):
        from skimage.measure import label
        from skimage.segmentation import watershed

        seeds = label(mask & (height >= THRESHOLD), connectivity=1)
        return watershed(elevation, seeds, mask=mask, connectivity=1)

    def simple_itk(threads):
        import SimpleITK

        seeds = SimpleITK.ConnectedComponent(
            SimpleITK.GetImageFromArray((mask & (height >= THRESHOLD)).view(np.uint8))
        )
        image = SimpleITK.GetImageFromArray(elevation)
        flooded = SimpleITK.MorphologicalWatershedFromMarkers(image, seeds, markWatershedLine=False)
        return SimpleITK.GetArrayViewFromImage(flooded) * mask

    def scipy(threads):
        from scipy.ndimage import label, watershed_ift

        seeds, _ = label(mask & (height >= THRESHOLD))
        return watershed_ift(elevation, seeds) * mask

    def nearly_equal(share):
        def agrees(expected, found):
            # Nuclei may be numbered in another order: compare where labels change.
            assert expected.max() == found.max()
            assert np.mean(np.diff(expected) != 0) > 0
            assert np.mean((np.diff(expected) != 0) != (np.diff(found.astype(np.int64)) != 0)) < share

        return agrees

    compare(
        kernel="seeds + watershed",
        data=f"dense {SIDE_PX}^2",
        pixels=true.size,
        nucfast=ours,
        peers=[
            Peer("scikit-image", scikit_image, nearly_equal(0.01), "ties in the order of a heap"),
            Peer(
                "SimpleITK", simple_itk, nearly_equal(0.1), "floods the background too, then cut to the mask"
            ),
            Peer("SciPy watershed_ift", scipy, nearly_equal(0.1), "image foresting transform, not masked"),
        ],
        bars=[Bar(5, 8, 15, peer="SimpleITK"), Bar(18, None, 50, peer="scikit-image")],
    )
