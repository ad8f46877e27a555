from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import reference
from nucfast._core import pixel_shuffle
from nucfast.ops.tiles import blend, stitch, tile

# Windows lie inside, over a border, and far outside.
origins_lists = st.lists(
    st.tuples(*[st.integers(-12, 14) | st.sampled_from([-(2**31), 2**31 - 1])] * 2), max_size=4
)
shapes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 4))


def noise(shape, dtype=np.uint8):
    return np.random.default_rng(3).integers(0, 256, shape).astype(dtype)


def as_origins(pairs):
    return np.array(pairs, np.int32).reshape(-1, 2)


@settings(max_examples=60, deadline=None)
@given(shape=shapes, pairs=origins_lists, size_px=st.integers(1, 6), fill=st.integers(0, 255))
def test_tile_equals_reference(shape, pairs, size_px, fill):
    image = noise(shape)
    expected = reference.tile(image, pairs, size_px=size_px, fill=fill)
    assert_array_equal(tile(image, as_origins(pairs), size_px=size_px, fill=fill), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@settings(max_examples=60, deadline=None)
@given(shape=shapes, pairs=origins_lists, size_px=st.integers(1, 6), data=st.data())
def test_stitch_equals_reference(dtype, shape, pairs, size_px, data):
    margin_px = data.draw(st.integers(0, (size_px - 1) // 2))
    tiles, out = noise((len(pairs), size_px, size_px, shape[2]), dtype), np.full(shape, 9, dtype)
    expected = reference.stitch(tiles, pairs, out.copy(), margin_px=margin_px)
    assert stitch(tiles, as_origins(pairs), out, margin_px=margin_px) is out
    assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@settings(max_examples=60, deadline=None)
@given(shape=shapes, pairs=origins_lists, size_px=st.integers(1, 6))
def test_blend_equals_reference(dtype, shape, pairs, size_px):
    tiles = noise((len(pairs), size_px, size_px, shape[2]), dtype)
    window = np.random.default_rng(0).integers(0, 4, (size_px, size_px)).astype(np.float32)
    blended = blend(tiles, as_origins(pairs), shape=shape[:2], window=window)
    assert blended.dtype == np.float32
    assert_allclose(blended, reference.blend(tiles, pairs, shape=shape[:2], window=window), rtol=1e-5)


def test_there_and_back():
    image, size_px, margin_px = noise((70, 95, 3)), 32, 6
    starts = [np.arange(-margin_px, side, size_px - 2 * margin_px) for side in image.shape[:2]]
    origins = as_origins([(r, c) for r in starts[0] for c in starts[1]])
    tiles = tile(image, origins, size_px=size_px)
    assert_array_equal(stitch(tiles, origins, np.zeros_like(image), margin_px=margin_px), image)
    window = np.outer(*[np.hanning(size_px + 2)[1:-1]] * 2).astype(np.float32)
    assert_allclose(blend(tiles, origins, shape=image.shape[:2], window=window), image, rtol=1e-6)


def test_blend_of_equal_tiles_is_exact_and_zero_where_nothing_is():
    tiles = np.full((1, 4, 4, 2), 77, np.uint8)
    blended = blend(tiles, as_origins([(1, 1)]), shape=(6, 6), window=np.full((4, 4), 0.5, np.float32))
    assert (blended[1:5, 1:5] == 77).all() and blended.sum() == 77 * 32


def test_memory_is_reused():
    image, origins = noise((8, 8, 3)), as_origins([(0, 0), (4, 4)])
    out = np.empty((2, 4, 4, 3), np.uint8)
    assert tile(image, origins, size_px=4, out=out) is out
    total = np.full((8, 8, 3), np.nan, np.float32)
    assert blend(out, origins, shape=(8, 8), window=np.ones((4, 4), np.float32), out=total) is total
    assert_array_equal(total[4:, 4:], image[4:, 4:])
    assert (total[:4, 4:] == 0).all()


def test_views_and_read_only_arrays():
    image, origins = noise((20, 20, 4)), as_origins([(1, 1), (0, 0), (3, 5), (0, 0)])
    image.flags.writeable = False
    cut = tile(image[::2, ::-1, :3], origins[::2], size_px=5)
    assert_array_equal(cut[1], image[::2, ::-1, :3][3:8, 5:10])


def test_beyond_two_to_the_31_pixels():
    """Positions are 64 bits wide. Memory that nobody writes to is not there."""
    image = np.zeros((65_536, 32_769, 1), np.uint8)
    assert image.size > 2**31
    image[-1, -1] = 7
    cut = tile(image, as_origins([(65_535, 32_768), (65_534, 32_767)]), size_px=2, fill=9)
    assert_array_equal(cut[..., 0], [[[7, 9], [9, 9]], [[0, 0], [0, 7]]])
    stitch(cut[1:], as_origins([(65_534, 32_767)]), image, margin_px=0)
    assert image[-1, -1] == 7


BLENDED: dict[type, np.ndarray] = {}  # what the first instruction set gave


def test_same_for_any_threads_and_instruction_set(isa):
    """Large enough for stores past the cache; rows of odd length, so that none is aligned."""
    image, size_px, pad = noise((1201, 907, 3)), 333, 10
    origins = as_origins([(r, c) for r in (-5, 300, 300, 868) for c in (-9, 200, 574)])
    tiles = tile(image, origins, size_px=size_px, fill=9)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), constant_values=9)
    total, weight = np.zeros(padded.shape), np.zeros((*padded.shape[:2], 1))
    window = np.random.default_rng(0).random((size_px, size_px), dtype=np.float32)
    for cut, (row, col) in zip(tiles, origins + pad, strict=True):
        place = np.s_[row : row + size_px, col : col + size_px]
        assert_array_equal(cut, padded[place])
        total[place] += window[..., None] * cut
        weight[place] += window[..., None]
    assert_array_equal(tile(image, origins, size_px=size_px, fill=9, threads=3), tiles)

    expected = (total / np.where(weight > 0, weight, 1))[pad:-pad, pad:-pad]
    for dtype in (np.uint8, np.float32):
        values = tiles.astype(dtype)
        blended = blend(values, origins, shape=image.shape[:2], window=window)
        assert_allclose(blended, expected, rtol=1e-5)
        assert_array_equal(blend(values, origins, shape=image.shape[:2], window=window, threads=3), blended)
        assert_array_equal(blended, BLENDED.setdefault(dtype, blended))


def test_bad_arguments():
    image, origins = noise((8, 8, 3)), as_origins([(0, 0)])
    with pytest.raises(TypeError, match="image: expected uint8, got float32"):
        tile(image.astype(np.float32), origins, size_px=4)
    with pytest.raises(ValueError, match="image: expected 3 dimensions"):
        tile(image[..., 0], origins, size_px=4)
    with pytest.raises(TypeError, match="origins: expected int32, got int64"):
        tile(image, origins.astype(np.int64), size_px=4)
    with pytest.raises(ValueError, match=r"origins: expected shape \(1, 2\), got \(1, 3\)"):
        tile(image, np.zeros((1, 3), np.int32), size_px=4)
    with pytest.raises(ValueError, match="size_px: expected a value >= 1, got 0"):
        tile(image, origins, size_px=0)
    with pytest.raises(ValueError, match=r"fill: expected a value in 0\.\.255, got 256"):
        tile(image, origins, size_px=4, fill=256)
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        tile(image, origins, size_px=4, threads=0)
    with pytest.raises(ValueError, match=r"out: expected shape \(1, 4, 4, 3\), got \(2, 4, 4, 3\)"):
        tile(image, origins, size_px=4, out=np.empty((2, 4, 4, 3), np.uint8))

    tiles = noise((1, 4, 4, 3))
    for margin_px in (-1, 2):
        with pytest.raises(
            ValueError, match="margin_px: expected 0 or more and less than half of the tile's 4 px"
        ):
            stitch(tiles, origins, image, margin_px=margin_px)
    with pytest.raises(ValueError, match="tiles: expected square tiles"):
        stitch(tiles[:, :3], origins, image, margin_px=0)
    with pytest.raises(TypeError, match="tiles: expected uint8 or float32, got float64"):
        stitch(tiles.astype(np.float64), origins, image, margin_px=0)
    with pytest.raises(TypeError, match="out: expected float32, got uint8"):
        stitch(tiles.astype(np.float32), origins, image, margin_px=0)
    with pytest.raises(ValueError, match="out: expected 3 channels, got shape"):
        stitch(tiles, origins, np.empty((8, 8, 1), np.uint8), margin_px=0)
    with pytest.raises(ValueError, match="out: expected a C-contiguous array"):
        stitch(tiles, origins, image[::2], margin_px=0)

    with pytest.raises(ValueError, match="window: expected finite values >= 0, got -1"):
        blend(tiles, origins, shape=(8, 8), window=np.full((4, 4), -1, np.float32))
    with pytest.raises(ValueError, match="window: expected finite values >= 0, got inf"):
        blend(tiles, origins, shape=(8, 8), window=np.full((4, 4), np.inf, np.float32))
    with pytest.raises(ValueError, match=r"window: expected shape \(4, 4\), got \(3, 3\)"):
        blend(tiles, origins, shape=(8, 8), window=np.ones((3, 3), np.float32))
    with pytest.raises(ValueError, match=r"shape: expected values >= 0, got \(-1, 8\)"):
        blend(tiles, origins, shape=(-1, 8), window=np.ones((4, 4), np.float32))


def test_tiles_that_are_not_finite_are_an_error():
    tiles = np.ones((1, 4, 4, 1), np.float32)
    tiles[0, 2, 1] = np.nan
    with pytest.raises(ValueError, match="tiles: expected finite values"):
        blend(tiles, np.zeros((1, 2), np.int32), shape=(4, 4), window=np.ones((4, 4), np.float32))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_pixel_shuffle(block):
    planes = noise((block**2, 5, 21))
    out = np.zeros((5 * block, 21 * block), np.uint8)
    pixel_shuffle(planes, out)
    expected = planes.reshape(block, block, 5, 21).transpose(2, 0, 3, 1).reshape(out.shape)
    assert_array_equal(out, expected)


def test_pixel_shuffle_refuses_other_shapes():
    with pytest.raises(ValueError, match="planes: expected a square number of planes"):
        pixel_shuffle(np.zeros((3, 4, 4), np.uint8), np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"out: expected shape \(8, 8\), got \(8, 7\)"):
        pixel_shuffle(np.zeros((4, 4, 4), np.uint8), np.zeros((8, 7), np.uint8))
