"""Augmented patches made on the device that learns from them.

A GPU learns from thousands of patches a second, more than a processor's cores can cut and change. So the
images and their targets lie in the device's memory, and a batch is cut and changed there, all patches at
once.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nucfast_training.augmentation import Jitter
from nucfast_training.data import Sample
from nucfast_training.patches import Matrix, Patches
from nucfast_training.recipe import Recipe
from nucfast_training.targets import TARGETS

_SHARPEN_SIGMA = 1.0  # of the blur whose difference is detail
_RADIUS = 6  # of the widest blur of `Jitter`, in px

# Luminance and chrominance tables of JPEG (ITU-T T.81, Annex K).
_LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 "
    "72 92 95 98 112 100 103 99"
)
_CHROMINANCE = "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66" + 38 * " 99"
_TABLES = np.array([[int(step) for step in text.split()] for text in (_LUMINANCE, _CHROMINANCE)])
_TABLES = _TABLES.reshape(2, 8, 8)
_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


def makes_here(recipe: Recipe) -> bool:
    """Whether ``DevicePatches`` can make the recipe's patches."""
    return recipe.patches.sampling == "random" and not recipe.augmentation


class DevicePatches(Patches):
    """``Patches`` whose batches are made on a device: the same but for rounding, noise and JPEG's details.

    Args:
        sets: as of ``Patches``.
        recipe: likewise; one for which ``makes_here``.
        device: where the images are kept and the batches made.
    """

    def __init__(self, sets: Sequence[Sequence[Sample]], recipe: Recipe, device: torch.device) -> None:
        super().__init__(sets, recipe)
        self.device = device
        self._heads = list(recipe.loss)
        samples = [sample for group in self.sets for sample in group]
        self._place = {id(sample): i for i, sample in enumerate(samples)}
        planes = [
            np.dstack([sample.image, *(sample.targets[head] for head in self._heads)]).reshape(
                -1, 3 + len(self._heads)
            )
            for sample in samples
        ]
        self._pixels = torch.from_numpy(np.concatenate(planes)).to(device)
        self._shapes = np.array([sample.labels.shape for sample in samples])
        self._starts = np.cumsum([0, *(len(plane) for plane in planes)])[:-1]

    @torch.no_grad()
    def batch_on_device(self, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Batch ``number`` as ``batch`` gives it, as tensors on the device."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, number])
        cuts, jitters = [], []
        for _ in range(recipe.patches.batch):
            cuts.append(self._draw(rng, recipe.patches.zoom))
            if recipe.patches.stain > 0:
                jitters.append(Jitter.draw(rng, recipe.patches.stain))
        planes = self._cut_all(cuts)
        images = planes[..., :3]
        if jitters:
            images = jitter_all(images, jitters)
        return images.contiguous(), {head: planes[..., 3 + i] for i, head in enumerate(self._heads)}

    def _cut_all(self, cuts: Sequence[tuple[Sample, Matrix]]) -> Tensor:
        """(N, size, size, 3 + heads) uint8."""
        size = self.recipe.patches.size_px
        places = [self._place[id(sample)] for sample, _ in cuts]
        matrices = self._to_device(np.stack([matrix for _, matrix in cuts]).astype(np.float32))
        shapes = self._to_device(self._shapes[places])[:, :, None, None]
        starts = self._to_device(self._starts[places])[:, None, None]
        steps = torch.arange(size, device=self.device, dtype=torch.float32)
        grid = matrices[:, :, 0, None, None] * steps + matrices[:, :, 1, None, None] * steps[:, None]
        grid = grid + matrices[:, :, 2, None, None]
        x, y = grid[:, 0], grid[:, 1]

        def index(rows: Tensor, cols: Tensor) -> Tensor:
            height, width = shapes[:, 0], shapes[:, 1]
            return starts + _reflected(rows.long(), height) * width + _reflected(cols.long(), width)

        left, top = x.floor(), y.floor()
        right_share, lower_share = (x - left)[..., None], (y - top)[..., None]
        corners = [self._pixels[index(top + row, left + col)].float() for row in (0, 1) for col in (0, 1)]
        upper = torch.lerp(corners[0], corners[1], right_share)
        lower = torch.lerp(corners[2], corners[3], right_share)
        mixed = torch.lerp(upper, lower, lower_share).round_().to(torch.uint8)
        kinds = [3 + i for i, head in enumerate(self._heads) if not TARGETS[head].binary]
        if kinds:
            nearest = self._pixels[index(y.round(), x.round())]
            mixed[..., kinds] = nearest[..., kinds]
        return mixed

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def _reflected(place: Tensor, length: Tensor) -> Tensor:
    # Mirrored at the first and last pixel, as often as need be.
    period = (2 * (length - 1)).clamp_min(1)
    place = place.abs() % period
    return torch.minimum(place, period - place)


@torch.no_grad()
def jitter_all(images: Tensor, draws: Sequence[Jitter]) -> Tensor:
    """``augmentation.jitter`` of many patches.

    Args:
        images: (N, H, W, 3) uint8, both sides multiples of 16.
        draws: one for each.

    Returns:
        (N, H, W, 3) uint8.
    """
    device = images.device

    def of_all(values: Sequence[NDArray[np.generic] | float]) -> Tensor:
        return torch.from_numpy(np.array(values, np.float32)).to(device, non_blocking=True)

    def chosen(kind: str) -> list[int]:
        return [i for i, draw in enumerate(draws) if getattr(draw, kind)]

    density = ((images.float() + 1.0) / 256.0).log_().neg_()
    matrices, offsets = of_all([draw.matrix for draw in draws]), of_all([draw.offset for draw in draws])
    density = torch.einsum("nhwc,ncd->nhwd", density, matrices) + offsets[:, None, None]
    out = density.neg_().exp_().mul_(256.0).sub_(1.0)
    if some := chosen("blur"):
        out[some] = _blurred(out[some], [draws[i].blur for i in some])
    if some := chosen("sharpen"):
        share = of_all([draws[i].sharpen for i in some])[:, None, None, None]
        out[some] += share * (out[some] - _blurred(out[some], [_SHARPEN_SIGMA] * len(some)))
    if some := chosen("noise"):
        generator = torch.Generator(device).manual_seed(draws[0].seed)
        noise = torch.randn(out[some].shape, generator=generator, device=device)
        out[some] += of_all([draws[i].noise for i in some])[:, None, None, None] * noise
    out = out.clamp_(0, 255).to(torch.uint8)
    if some := chosen("quality"):
        out[some] = _compressed(out[some], [draws[i].quality for i in some])
    return out


def _blurred(images: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian blur of (N, H, W, 3), each with its sigma."""
    kernels = np.zeros((len(sigmas), 2 * _RADIUS + 1), np.float32)
    for kernel, sigma in zip(kernels, sigmas, strict=True):
        reach = min(_RADIUS, round(4 * sigma))
        kernel[_RADIUS - reach : _RADIUS + reach + 1] = cv2.getGaussianKernel(2 * reach + 1, sigma)[:, 0]
    weights = torch.from_numpy(kernels).to(images.device, non_blocking=True)
    planes = images.permute(0, 3, 1, 2)
    for axis in (2, 3):
        rim = [0, 0, _RADIUS, _RADIUS] if axis == 2 else [_RADIUS, _RADIUS, 0, 0]
        padded = functional.pad(planes, rim, mode="reflect")
        planes = sum(
            padded.narrow(axis, i, planes.shape[axis]) * weights[:, i, None, None, None]
            for i in range(2 * _RADIUS + 1)
        )
    return planes.permute(0, 2, 3, 1)


def _compressed(images: Tensor, qualities: Sequence[int]) -> Tensor:
    """What JPEG with halved chroma leaves of (N, H, W, 3) uint8."""
    device = images.device
    scale = np.array([5000 // q if q < 50 else 200 - 2 * q for q in qualities])
    tables = np.clip((_TABLES * scale[:, None, None, None] + 50) // 100, 1, 255).astype(np.float32)
    steps = torch.from_numpy(tables).to(device, non_blocking=True)
    turn = torch.tensor(_YCC, dtype=torch.float32, device=device)
    back = torch.tensor(np.linalg.inv(_YCC), dtype=torch.float32, device=device)
    planes = torch.einsum("nhwc,dc->ndhw", images.float(), turn)
    planes[:, 0] -= 128.0
    luma = _quantised(planes[:, :1], steps[:, 0])
    chroma = _quantised(functional.avg_pool2d(planes[:, 1:], 2), steps[:, 1])
    chroma = functional.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    planes = torch.cat([luma + 128.0, chroma], dim=1)
    pixels = torch.einsum("ndhw,cd->nhwc", planes, back)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def _quantised(planes: Tensor, steps: Tensor) -> Tensor:
    """(N, C, H, W) with cosine transforms of 8 x 8 pixels rounded to multiples of ``steps``, (N, 8, 8)."""
    count, channels, height, width = planes.shape
    wave, place = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    basis = torch.cos((2 * place + 1) * wave * torch.pi / 16) / 2
    basis[0] /= 2**0.5
    basis = basis.to(planes.device)
    blocks = planes.reshape(count, channels, height // 8, 8, width // 8, 8)
    waves = torch.einsum("ua,nchawb,vb->nchuwv", basis, blocks, basis)
    step = steps[:, None, None, :, None, :]
    waves = (waves / step).round_() * step
    return torch.einsum("ua,nchuwv,vb->nchawb", basis, waves, basis).reshape(planes.shape)
