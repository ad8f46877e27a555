"""Macenko stain normalisation: the stains of an image fitted, the image repainted."""

import numpy as np

from harness import Bar, Peer
from inputs import dense_image
from nucfast import ops

SIDE_PX = 4096
REFERENCE = ops.REFERENCE_STAINS


STRIP_PX = 64  # rows: their temporaries stay in the cache


def numpy_with_table(image, out):
    """What one gets by hand from NumPy: float32, densities from a table, percentiles of every 64th pixel."""
    table = -np.log((np.arange(256, dtype=np.float32) + 1) / 240)
    density = np.empty((STRIP_PX * image.shape[1], 3), np.float32)
    count, total, products, sample = 0, np.zeros(3), np.zeros((3, 3)), []
    for top in range(0, len(image), STRIP_PX):
        strip = image[top : top + STRIP_PX].reshape(-1, 3)
        np.take(table, strip, out=density, mode="clip")
        sample.append(density[::64].copy())
        tissue = density[strip.max(axis=1) <= 205]
        count += len(tissue)
        total += np.ones(len(tissue), np.float32) @ tissue
        products += tissue.T @ tissue
    covariance = products / count - np.outer(total / count, total / count)
    plane = np.linalg.eigh(covariance)[1][:, :0:-1]
    plane *= np.sign(plane.sum(axis=0))
    sampled = np.concatenate(sample)
    along, across = (sampled[(sampled >= 0.15).all(axis=1)] @ plane).T
    angles = np.percentile(np.arctan2(across, along), [1, 99])
    stains = (plane @ np.stack([np.cos(angles), np.sin(angles)])).T
    stains = stains[np.argsort(-stains[:, 0])]
    unmixing = np.linalg.pinv(stains.T)
    strengths = np.percentile(sampled @ unmixing.T, 99, axis=0)
    mixing = -(REFERENCE.vectors.T * (REFERENCE.strengths / strengths)) @ unmixing
    mixing = mixing.T.astype(np.float32)
    light = np.empty_like(density)
    for top in range(0, len(image), STRIP_PX):
        np.take(table, image[top : top + STRIP_PX].reshape(-1, 3), out=density, mode="clip")
        np.matmul(density, mixing, out=light)
        np.exp(light, out=light)
        light *= 240
        np.minimum(light, 255, out=light)
        np.copyto(out[top : top + STRIP_PX].reshape(-1, 3), light, casting="unsafe")
    return out


def test_macenko(compare):
    image = dense_image(SIDE_PX).copy()  # PyTorch warns of memory that is read-only
    out, by_numpy = np.empty_like(image), np.empty_like(image)

    def torchstain(threads):
        import torch
        from torchstain.torch.normalizers import TorchMacenkoNormalizer

        channels_first = torch.from_numpy(image).permute(2, 0, 1)
        return TorchMacenkoNormalizer().normalize(channels_first, stains=False)[0].numpy()

    def agree(ours, theirs):
        """Its covariance is summed in float32, so its stains are off in the third digit."""
        difference = np.abs(ours.astype(np.int16) - theirs)
        assert difference.max() <= 2 and (difference > 0).mean() < 0.05, np.bincount(difference.ravel())

    def agree_sampled(ours, theirs):
        difference = np.abs(ours.astype(np.int16) - theirs)
        assert difference.mean() < 0.5, difference.mean()

    compare(
        kernel="Macenko fit + apply",
        data=f"dense {SIDE_PX}^2, H&E",
        pixels=SIDE_PX**2,
        nucfast=lambda threads: ops.normalize_stain(image, out=out, threads=threads),
        peers=[
            Peer(
                "NumPy with table",
                lambda threads: numpy_with_table(image, by_numpy),
                agree_sampled,
                "its percentiles are those of every 64th pixel; mean difference below half a grey level",
            ),
            Peer("torchstain", torchstain, agree, "at most two grey levels apart, 95 % of values equal"),
        ],
        bars=[Bar(1.8, 3.0, 4.0, peer="NumPy with table"), Bar(7.0, 12.0, 20.0, peer="torchstain")],
    )
