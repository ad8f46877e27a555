import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import reference
from nucfast.ops import REFERENCE_STAINS, Stains, fit_stains, normalize_stain
from nucfast.testing import synthetic_slide


@pytest.fixture(scope="module")
def stained():
    return synthetic_slide(420, 310, seed=4).image


def test_fit_equals_reference(stained):
    vectors, strengths = reference.fit_stains(stained)
    found = fit_stains(stained)
    # Histograms of 65,536 bins against a sort.
    assert_allclose(found.vectors, vectors, atol=2e-4)
    assert_allclose(found.strengths, strengths, rtol=2e-3)
    assert_allclose(np.linalg.norm(found.vectors, axis=1), 1)
    assert found.vectors[0, 0] > found.vectors[1, 0]


def test_normalize_equals_reference(stained):
    source = fit_stains(stained)
    expected = reference.normalize_stain(stained, source, REFERENCE_STAINS)
    difference = np.abs(normalize_stain(stained, source=source).astype(int) - expected)
    # Table entries are float32: a value just below a whole number may come out as that number.
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_real_image_as_torchstain(data_dir):
    torch = pytest.importorskip("torch", reason="the oracle needs PyTorch")
    macenko = pytest.importorskip("torchstain.torch.normalizers").TorchMacenkoNormalizer()
    path = next((data_dir / "tnbc" / "images").iterdir())
    image = np.asarray(Image.open(path).convert("RGB"))
    channels_first = torch.from_numpy(image.copy()).permute(2, 0, 1)
    expected = macenko.normalize(channels_first, stains=False)[0].numpy()
    macenko.fit(channels_first)
    found = fit_stains(image)
    assert_allclose(found.vectors, macenko.HERef.numpy().T, atol=2e-3)
    assert_allclose(found.strengths, macenko.maxCRef.numpy(), rtol=5e-3)
    difference = np.abs(normalize_stain(image).astype(int) - expected)
    assert difference.max() <= 2 and (difference > 0).mean() < 0.05


VECTORS = np.array([[0.65, 0.70, 0.29], [0.21, 0.80, 0.56]])
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


def mixture(shape):
    """Pixels that hold one of two stains, both or none."""
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0, 1.5, (*shape, 2)) * rng.integers(0, 2, (*shape, 2))
    return np.round(240 * np.exp(-amounts @ VECTORS) - 1).astype(np.uint8)


def test_recovers_the_stains_of_a_mixture():
    assert_allclose(fit_stains(mixture((200, 200))).vectors, VECTORS, atol=0.02)


def test_same_for_any_threads_and_instruction_set(stained, isa):
    once = fit_stains(stained, threads=1)
    many = fit_stains(stained, threads=3)
    assert_array_equal(many.vectors, once.vectors)
    assert_array_equal(many.strengths, once.strengths)
    assert_array_equal(normalize_stain(stained, threads=3), normalize_stain(stained))


def test_instruction_sets_agree(stained):
    from nucfast import _core

    results = []
    for limit in ("baseline", "avx2", "avx512"):
        if _core.set_isa(limit) == limit:
            found = fit_stains(stained)
            results.append((found.vectors, found.strengths, normalize_stain(stained, source=found)))
    _core.set_isa(None)
    for result in results[1:]:
        for ours, plain in zip(result, results[0], strict=True):
            assert_array_equal(ours, plain)


def test_views_read_only_and_in_place(stained):
    view = stained[::2, ::-1]
    view.flags.writeable = False
    expected = normalize_stain(view.copy())
    assert_array_equal(normalize_stain(view), expected)
    image = view.copy()
    assert normalize_stain(image, out=image) is image
    assert_array_equal(image, expected)


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5, 3), (1, 1, 3), (40, 50, 3)])
def test_without_tissue_there_are_no_stains_but_given_ones_do(shape):
    white = np.full(shape, 255, np.uint8)
    with pytest.raises(ValueError, match="image: expected stained tissue, got none"):
        fit_stains(white)
    with pytest.raises(ValueError, match="image: expected stained tissue, got none"):
        normalize_stain(white)
    painted = normalize_stain(white, source=REFERENCE_STAINS)
    assert painted.shape == shape and (painted >= 250).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (30, 30, 3)])
@pytest.mark.parametrize("colour", [(120, 60, 150), (0, 0, 0)])
def test_one_colour_is_not_two_stains(shape, colour):
    with pytest.raises(ValueError, match="image: expected two stains, got one colour of tissue"):
        fit_stains(np.full(shape, colour, np.uint8))


def test_one_stain_is_not_two():
    amounts = np.random.default_rng(0).uniform(0.8, 2.0, (100, 100, 1))
    image = np.round(240 * np.exp(-amounts * [0.65, 0.70, 0.29]) - 1).astype(np.uint8)
    with pytest.raises(ValueError, match="image: expected two stains, got one colour of tissue"):
        fit_stains(image)


def test_a_speck_of_tissue_has_no_strength():
    image = np.full((2000, 200, 3), 255, np.uint8)
    image[:30, :30] = mixture((30, 30))
    with pytest.raises(ValueError, match="image: expected more stained tissue"):
        fit_stains(image)


def test_every_value_and_black():
    """All densities that there are, also the greatest, and stains that clip at both ends."""
    values = np.arange(256, dtype=np.uint8)
    image = np.stack(np.meshgrid(values, values[::17], values[::5], indexing="ij"), axis=-1).reshape(
        256, -1, 3
    )
    target = Stains(vectors=REFERENCE_STAINS.vectors, strengths=np.array([20.0, 0.01]))
    for towards in (REFERENCE_STAINS, target):
        expected = reference.normalize_stain(image, REFERENCE_STAINS, towards)
        difference = np.abs(
            normalize_stain(image, source=REFERENCE_STAINS, target=towards).astype(int) - expected
        )
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_bad_arguments(stained):
    with pytest.raises(TypeError, match="image: expected uint8, got float32"):
        fit_stains(stained.astype(np.float32))
    with pytest.raises(ValueError, match="image: expected 3 dimensions"):
        fit_stains(stained[..., 0])
    with pytest.raises(ValueError, match="image: expected 3 channels, got 4"):
        fit_stains(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        fit_stains(stained, threads=0)
    with pytest.raises(ValueError, match="out: expected shape"):
        normalize_stain(stained, out=np.empty((3, 3, 3), np.uint8))
    with pytest.raises(ValueError, match=r"target.vectors: expected shape \(2, 3\), got \(3, 2\)"):
        normalize_stain(stained, target=Stains(np.ones((3, 2)), np.ones(2)))
    for strengths in ([0.0, 1.0], [np.nan, 1.0]):
        wrong = Stains(REFERENCE_STAINS.vectors, np.array(strengths))
        with pytest.raises(ValueError, match="source: expected finite vectors and finite strengths above 0"):
            normalize_stain(stained, source=wrong)
    same = Stains(np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]), np.ones(2))
    with pytest.raises(ValueError, match="source: expected two stains of different colours"):
        normalize_stain(stained, source=same)
