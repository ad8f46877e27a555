"""The pipeline with a perfect network: cutting and stitching must change nothing at all."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from nucfast.engine import Bundle, ClassScheme, DecoderSpec, OutputSpec
from nucfast.errors import BundleError, DatasetError, SlideError
from nucfast.nuclei import Nuclei, NucleusClass
from nucfast.ops import distance_transform, label
from nucfast.pipeline import evaluate_dataset, segment
from nucfast.pipeline.cover import cover
from nucfast.pipeline.grid import Window, regions
from nucfast.pipeline.maps import predict_maps
from nucfast.pipeline.slide_run import plan, run_regions
from nucfast.pipeline.stages import Stages
from nucfast.slide import open_slide
from nucfast.testing import random_blobs

CLASSES = (NucleusClass(1, "one", (255, 0, 0)), NucleusClass(2, "two", (0, 0, 255)))


def make_bundle(*, tile_px=128, margin_px=16, halo_px=32):
    return Bundle(
        name="known",
        version="1",
        description="maps that are written in the image",
        mpp=0.5,
        tile_px=tile_px,
        stride_px=16,
        margin_px=margin_px,
        halo_px=halo_px,
        outputs=(
            OutputSpec("nucleus", "probability", 1, 1),
            OutputSpec("distance", "distance", 1, 1),
            OutputSpec("class", "probability of each class", 2, 2),
        ),
        classes=CLASSES,
        class_scheme=None,
        decoder=DecoderSpec("climb", 60, min_rise=10, min_area_um2=4.0, max_hole_um2=5.0, peak_share=0.5),
        licence="none",
    )


@dataclass(frozen=True)
class KnownMaps:
    """An engine whose maps are the channels of the image: nucleus, distance, second class."""

    bundle: Bundle
    name: str = "known"
    device: str = "cpu"
    precision: str = "exact"
    threads: int = 2
    description: str = "known maps"

    def run(self, tiles, *, out=None):
        assert tiles.shape[1] % 16 == 0
        assert tiles.shape[2] % 16 == 0
        second = tiles[:, ::2, ::2, 2:3]
        return {
            "nucleus": tiles[..., 0:1].copy(),
            "distance": tiles[..., 1:2].copy(),
            "class": np.concatenate([255 - second, second], axis=3),
        }


@pytest.fixture(scope="module")
def image():
    """A dense field of touching nuclei, written as maps."""
    labels = random_blobs((517, 643), count=900, seed=3)
    distance = distance_transform(labels)
    peak = np.zeros(labels.max() + 1)
    np.maximum.at(peak, labels.ravel(), distance.ravel())
    height = np.where(labels > 0, 255 * distance / np.maximum(peak[labels], 1), 0)
    kind = np.where(labels % 3 == 0, 220, 30)
    return np.dstack([np.where(labels > 0, 255, 0), height, kind]).astype(np.uint8)


def decode(image, bundle, *, region_px, mpp=None, batch=1, decoders=1, shuffle=None, engine=None):
    with open_slide(image, mpp=mpp) as slide:
        layout = plan(slide, bundle, region_px=region_px)
        todo = list(layout.regions)
        if shuffle is not None:
            np.random.default_rng(shuffle).shuffle(todo)
        results = run_regions(
            slide,
            layout,
            todo,
            engine=engine or KnownMaps(bundle),
            batch=batch,
            decoders=decoders,
            stages=Stages(),
            finish=lambda region, nuclei: None,
        )
        return [nuclei for _, nuclei in results]


def run(image, bundle, **settings):
    nuclei = Nuclei.concat(decode(image, bundle, **settings))
    return nuclei[np.argsort(nuclei.id)]


def assert_same(found, expected):
    assert_array_equal(found.id, expected.id)
    for name in ("x", "y", "bbox", "class_id", "probability", "class_probability", "vertices", "offsets"):
        assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in expected.features:
        assert_array_equal(found.features[name], expected.features[name], err_msg=name)


@pytest.fixture(scope="module")
def one_region(image):
    nuclei = run(image, make_bundle(), region_px=4096)
    assert len(nuclei) > 300
    assert np.unique(nuclei.id).size == len(nuclei)
    return nuclei


@pytest.mark.parametrize("region_px", [64, 100, 257, 350, 640])
@pytest.mark.parametrize(
    ("tile_px", "margin_px", "batch", "decoders", "shuffle"),
    [(128, 16, 1, 1, None), (64, 16, 3, 3, 1), (256, 32, 2, 2, 2), (1024, 0, 1, 4, 3)],
)
def test_any_cut_gives_the_same_nuclei(
    image, one_region, region_px, tile_px, margin_px, batch, decoders, shuffle
):
    bundle = make_bundle(tile_px=tile_px, margin_px=margin_px, halo_px=64)
    found = run(image, bundle, region_px=region_px, batch=batch, decoders=decoders, shuffle=shuffle)
    assert_same(found, one_region)


@dataclass(frozen=True)
class Counting(KnownMaps):
    """Counts the pixels that it sees."""

    precision: str = "int8"
    seen: list[int] = field(default_factory=list)

    def run(self, tiles, *, out=None):
        self.seen.append(tiles[..., 0].size)
        return super().run(tiles, out=out)


@pytest.mark.parametrize("region_px", [64, 100, 257])
@pytest.mark.parametrize("shuffle", [None, 1])
def test_neighbours_share_what_both_see(image, one_region, region_px, shuffle):
    """They compute less, most of all if they run in their order, and find the same nuclei."""
    seen = {}
    for context_px in (None, 16):
        bundle = replace(make_bundle(tile_px=1024, margin_px=16, halo_px=64), context_px=context_px)
        engine = Counting(bundle)
        found = run(image, bundle, region_px=region_px, engine=engine, shuffle=shuffle, decoders=2)
        assert_same(found, one_region)
        seen[context_px] = sum(engine.seen)
    assert seen[16] < (0.9 if shuffle is None else 1.0) * seen[None]


@pytest.mark.parametrize("allow_unreadable", [False, True])
@pytest.mark.parametrize("decoders", [1, 3])
def test_regions_beside_damage_are_as_if_done_alone(image, allow_unreadable, decoders, monkeypatch):
    """What cannot be read of one region, its neighbours must not wait for, nor take over."""
    bundle = replace(make_bundle(tile_px=1024, margin_px=16, halo_px=32), context_px=16)
    with open_slide(image) as slide:
        layout = plan(slide, bundle, region_px=150)
        read = slide.read_scaled

        def damaged(x, y, width, height, scale, *, parts=None):
            if x <= 200 < x + width and y <= 210 < y + height:
                raise SlideError("tile 0 cannot be decoded")
            return read(x, y, width, height, scale, parts=parts)

        monkeypatch.setattr(slide, "read_scaled", damaged)

        def results(todo):
            found = {}
            try:
                for region, nuclei in run_regions(
                    slide,
                    layout,
                    todo,
                    engine=Counting(bundle),
                    batch=1,
                    decoders=decoders,
                    stages=Stages(),
                    finish=lambda region, nuclei: None,
                    allow_unreadable=allow_unreadable,
                ):
                    found[region.index] = nuclei
            except SlideError:
                assert not allow_unreadable
            return found

        together = results(layout.regions)
        alone = {}
        for region in layout.regions:
            alone |= results([region])
    assert together.keys() == alone.keys()
    assert (len(alone) == len(layout.regions)) == allow_unreadable
    for index, nuclei in alone.items():
        assert_same(together[index], nuclei)
        assert together[index].meta == nuclei.meta
    assert sum(map(len, alone.values())) > 200


def test_scaled_slide_gives_the_same_nuclei_in_its_own_pixels(image, one_region):
    twice = image.repeat(2, axis=0).repeat(2, axis=1)
    with open_slide(twice, mpp=0.2527) as slide:
        layout = plan(slide, make_bundle(), region_px=200)
    assert layout.scale == 2.0  # 1 % from a whole number
    found = run(twice, make_bundle(), region_px=200, mpp=0.25, decoders=2)
    assert_array_equal(found.id, one_region.id)
    assert_array_equal(found.vertices, 2 * one_region.vertices)
    np.testing.assert_allclose(found.features["area_um2"], one_region.features["area_um2"], rtol=1e-6)


@pytest.mark.parametrize("mpp", [0.23, 0.31])
def test_any_cut_of_a_resampled_slide_gives_the_same_nuclei(image, mpp):
    large = image.repeat(2, axis=0).repeat(2, axis=1)
    with open_slide(large, mpp=mpp) as slide:
        assert plan(slide, make_bundle(), region_px=200).scale == 0.5 / mpp
    whole = run(large, make_bundle(), region_px=4096, mpp=mpp)
    assert len(whole) > 200
    assert_same(run(large, make_bundle(), region_px=150, mpp=mpp, decoders=2, shuffle=1), whole)


@pytest.mark.parametrize("region_px", [64, 100, 130])
def test_nuclei_larger_than_the_halo_are_kept_whole(region_px):
    image = np.zeros((300, 300, 3), np.uint8)
    image[20:280, 140:170] = 255  # 130 um long
    whole = run(image, make_bundle(halo_px=16), region_px=512)
    assert len(whole) == 1
    assert_same(run(image, make_bundle(halo_px=16), region_px=region_px), whole)


def test_a_larger_halo_that_cannot_be_read_costs_one_region(monkeypatch):
    image = np.zeros((300, 300, 3), np.uint8)
    image[10:180, 40:60] = 255  # reaches past the halos of regions 0 and 3
    image[220:230, 220:230] = 255
    bundle = make_bundle(halo_px=16)
    with open_slide(image) as slide:
        layout = plan(slide, bundle, region_px=100)
        read, widest = slide.read_scaled, max(region.read.height for region in layout.regions)

        def damaged(x, y, width, height, scale, *, parts=None):
            if height > widest:
                raise SlideError("tile 0 cannot be decoded")
            return read(x, y, width, height, scale, parts=parts)

        monkeypatch.setattr(slide, "read_scaled", damaged)
        done = []
        results = run_regions(
            slide,
            layout,
            layout.regions,
            engine=KnownMaps(bundle),
            batch=1,
            decoders=1,
            stages=Stages(),
            finish=lambda region, nuclei: None,
        )
        with pytest.raises(SlideError, match="tile 0"):
            done.extend(results)
    assert [region.index for region, _ in done] == [1, 2, 4, 5, 6, 7, 8]
    assert sum(len(nuclei) for _, nuclei in done) == 1


def test_nuclei_larger_than_any_halo_are_reported():
    image = np.zeros((600, 200, 3), np.uint8)
    image[20:580, 90:110] = 255
    found = decode(image, make_bundle(halo_px=16), region_px=64)
    listed = [number for nuclei in found for number in nuclei.meta["oversized"]]
    assert listed
    assert set(listed) <= {number for nuclei in found for number in nuclei.id.tolist()}


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(1, 500),
    height=st.integers(1, 500),
    region_px=st.integers(16, 300),
    halo_px=st.integers(0, 64),
    margin_px=st.integers(0, 64),
)
def test_regions_own_every_pixel_once(width, height, region_px, halo_px, margin_px):
    owners = np.zeros((height, width), int)
    for region in regions(
        width, height, region_px=region_px, halo_px=halo_px, margin_px=margin_px, stride_px=16
    ):
        owned, decoded, read = region.owned, region.decoded, region.read
        owners[owned.top : owned.bottom, owned.left : owned.right] += 1
        for outer, inner, px in ((decoded, owned, halo_px), (read, decoded, margin_px)):
            assert outer.top % 16 == 0
            assert outer.left % 16 == 0
            assert outer.top <= max(0, inner.top - px)
            assert outer.bottom >= min(height, inner.bottom + px)
            assert outer.left <= max(0, inner.left - px)
            assert outer.right >= min(width, inner.right + px)
    assert (owners == 1).all()


@settings(max_examples=200, deadline=None)
@given(data=st.data(), rows=st.integers(1, 40), cols=st.integers(1, 40), tile=st.integers(3, 20))
def test_tiles_cover_what_is_wanted_once_with_margins(data, rows, cols, tile):
    stride = 16
    bundle = make_bundle(tile_px=tile * stride, margin_px=data.draw(st.integers(0, (tile - 1) // 2 * stride)))
    image = Window(0, 0, rows * stride, cols * stride)
    top, left = data.draw(st.integers(0, rows - 1)) * stride, data.draw(st.integers(0, cols - 1)) * stride
    kept = Window(
        top,
        left,
        data.draw(st.integers(top + 1, image.bottom)),
        data.draw(st.integers(left + 1, image.right)),
    )
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    field = random.random(image.size) < data.draw(st.sampled_from([0.0, 2e-4, 1.0]))
    tiles = cover(
        kept,
        image,
        bundle,
        wanted=lambda part: bool(
            field[max(0, part.top) : max(0, part.bottom), max(0, part.left) : max(0, part.right)].any()
        ),
    )
    times = np.zeros(image.size, int)
    for t in tiles:
        times[t.kept.top : t.kept.bottom, t.kept.left : t.kept.right] += 1
        assert max(t.seen.size) <= bundle.tile_px
        for low, high, least, most, end in (
            (t.seen.top, t.seen.bottom, t.kept.top, t.kept.bottom, image.bottom),
            (t.seen.left, t.seen.right, t.kept.left, t.kept.right, image.right),
        ):
            assert low % stride == high % stride == least % stride == 0
            assert 0 <= low <= max(0, least - bundle.margin_px)
            assert min(end, most + bundle.margin_px) <= high <= end
    inside = np.zeros(image.size, bool)
    inside[kept.top : kept.bottom, kept.left : kept.right] = True
    assert times.max() <= 1
    assert (times[field & inside] == 1).all()
    assert (times[~inside] == 0).all()


def test_tiles_follow_the_tissue_and_else_are_alike():
    whole = Window(0, 0, 3200, 3200)
    everywhere = cover(whole, whole, replace(make_bundle(), tile_px=1024, margin_px=64))
    assert len(everywhere) == 16
    diagonal = cover(
        whole,
        whole,
        replace(make_bundle(), tile_px=1024, margin_px=64),
        wanted=lambda part: part.left < part.bottom and part.top < part.right,
    )
    seen = [sum(t.seen.height * t.seen.width for t in tiles) for tiles in (everywhere, diagonal)]
    assert seen[1] < 0.25 * seen[0]


@pytest.mark.parametrize("region_px", [100, 257, 350, 640])
def test_a_gpu_gets_tiles_of_one_shape_in_all_regions(image, one_region, region_px):
    """Also where the last region is narrower than a tile, and with the same nuclei."""

    shapes = set()

    class OnGpu(KnownMaps):
        def run(self, tiles, *, out=None):
            shapes.add(tiles.shape[1:3])
            return super().run(tiles, out=out)

    bundle = make_bundle(tile_px=256, margin_px=32, halo_px=64)
    engine = OnGpu(bundle, device="cuda:0")
    assert_same(run(image, bundle, region_px=region_px, engine=engine), one_region)
    assert shapes == {(256, 256)}


def test_windows_grow_to_a_length():
    within = Window(0, 0, 517, 643)
    assert Window(64, 600, 517, 643).at_least(256, align_px=16, within=within) == Window(64, 376, 517, 643)
    assert Window(0, 0, 40, 300).at_least(256, align_px=16, within=within) == Window(0, 0, 256, 300)
    assert Window(16, 0, 40, 300).at_least(256, align_px=16, within=within) == Window(0, 0, 256, 300)
    assert Window(16, 16, 40, 40).at_least(1000, align_px=16, within=within) == within


def test_a_gpu_gets_tiles_of_one_shape():
    """Wherever the tissue lies, if the image is larger than a tile; and nothing wanted is left out."""
    image, bundle = Window(0, 0, 4000, 4800), replace(make_bundle(), tile_px=1024, margin_px=64)
    spots = np.random.default_rng(3).uniform(0, 4000, (9, 2))

    def wanted(part: Window) -> bool:
        return any(part.top <= y < part.bottom and part.left <= x < part.right for y, x in spots)

    tiles = cover(image, image, bundle, wanted=wanted, cell_px=bundle.tile_px)
    assert {tile.seen.size for tile in tiles} == {(1024, 1024)}
    for y, x in spots:
        inside = [t for t in tiles if t.kept.top <= y < t.kept.bottom and t.kept.left <= x < t.kept.right]
        assert len(inside) == 1


def test_tiles_have_few_shapes_however_the_tissue_lies():
    image = Window(0, 0, 9600, 9600)
    bundle = replace(make_bundle(), tile_px=1024, margin_px=64)
    shapes, tiles = set(), 0
    for seed in range(8):
        spots = np.random.default_rng(seed).uniform(600, 9000, (12, 2))

        def wanted(part: Window, spots=spots) -> bool:
            middle = np.array([part.top + part.bottom, part.left + part.right]) / 2
            return bool((np.hypot(*(spots - middle).T) < 500).any())

        found = cover(image, image, bundle, wanted=wanted)
        tiles += len(found)
        shapes |= {tile.seen.size for tile in found}
    assert tiles > 100
    assert len(shapes) <= 16
    assert shapes <= {(high, wide) for high in range(352, 1025, 224) for wide in range(352, 1025, 224)}


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (15, 33), (200, 130), (300, 517)])
@pytest.mark.parametrize("batch", [1, 4])
def test_maps_do_not_depend_on_tiles(shape, batch):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    bundle = make_bundle(tile_px=64, margin_px=16)
    height, width = (-(-size // 16) * 16 for size in shape)
    kept = Window(0, 0, *shape)
    tiles = cover(kept, Window(0, 0, height, width), bundle)
    maps = predict_maps(KnownMaps(bundle), image, tiles, kept, batch=batch)
    assert_array_equal(maps["nucleus"][..., 0], image[..., 0])
    assert_array_equal(maps["distance"][..., 0], image[..., 1])
    assert_array_equal(maps["class"][..., 1], image[::2, ::2, 2])


def test_pixels_that_are_more_nucleus_have_more_say_in_its_class():
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:30, 10:30, :2] = 140  # more of it is of class 1,
    image[10:30, 21:30] = 255  # but this is what is surely nucleus
    image[41, 10:40, :2] = 200  # so thin that the class map, of half the resolution, does not show it
    image[40, 10:40, 2] = 255
    nuclei = segment(image, engine=KnownMaps(make_bundle()))
    assert nuclei.class_id.tolist() == [2, 2]
    sure, faint = 4 * 255, 6 * 140  # in every second column
    np.testing.assert_allclose(nuclei.class_probability, [sure / (sure + faint), 1.0], rtol=1e-6)


def test_window_grows_to_whole_strides_within_the_slide():
    assert Window(20, 20, 40, 40).grown(5, align_px=16, within=Window(0, 0, 100, 47)) == Window(0, 0, 48, 47)


def test_faint_nuclei_are_found_and_clear_ones_not_widened():
    rows, cols = np.mgrid[:80, :160]
    clear, faint = (np.hypot(rows - 40, cols - centre) for centre in (40, 120))
    image = np.zeros((80, 160, 3))
    image[..., 0] = np.maximum(np.clip(255 - 12 * clear, 0, 255), np.clip(110 - 5 * faint, 0, 255))
    image[..., 1] = np.maximum(np.clip(250 - 10 * clear, 0, 255), np.clip(250 - 10 * faint, 0, 255))
    nuclei = run(image.astype(np.uint8), make_bundle(), region_px=4096)
    assert len(nuclei) == 2
    assert np.sort(nuclei.x).round(1).tolist() == [40.5, 120.5]
    radius_px = np.sqrt(nuclei.features["area_um2"] / np.pi) / 0.5
    # The clear one ends at half of its peak, 10.6 px from its centre; at 60 it would end at 16 px.
    np.testing.assert_allclose(radius_px[np.argsort(nuclei.x)], [10.6, 10.0], atol=0.5)


def test_a_bundle_that_cannot_be_decoded_is_refused():
    bundle = make_bundle()
    unknown = replace(bundle, decoder=replace(bundle.decoder, name="stars"))
    with pytest.raises(BundleError, match="decoder 'stars' is not known"):
        segment(np.zeros((20, 20, 3), np.uint8), engine=KnownMaps(unknown))
    without = replace(bundle, outputs=bundle.outputs[1:])
    with pytest.raises(BundleError, match="needs the outputs"):
        segment(np.zeros((20, 20, 3), np.uint8), engine=KnownMaps(without))


def test_components_are_not_split_and_need_no_distance():
    bundle = make_bundle(halo_px=128)
    outputs = tuple(output for output in bundle.outputs if output.name != "distance")
    settings = DecoderSpec("components", 128, min_rise=0, min_area_um2=1.0)
    bundle = replace(bundle, outputs=outputs, decoder=settings)
    image = np.zeros((300, 400, 3), np.uint8)
    image[..., 0] = np.where(random_blobs((300, 400), count=60, seed=5) > 0, 200, 90)
    expected = label(image[..., 0] >= 128, connectivity=4)
    found = run(image, bundle, region_px=1024)
    assert len(found) == (np.bincount(expected.ravel())[1:] * 0.25 >= 1.0).sum()
    areas = np.sort(np.bincount(expected.ravel())[1:])[-len(found) :]
    assert_array_equal(np.sort(found.features["area_um2"]), (areas * 0.25).astype(np.float32))
    assert_same(run(image, bundle, region_px=150), found)
    with pytest.raises(BundleError, match="decoder 'climb' needs the outputs"):
        segment(image, engine=KnownMaps(replace(bundle, decoder=make_bundle().decoder)))


def test_a_data_set_is_compared_whole_or_refused(tmp_path):
    engine = KnownMaps(replace(make_bundle(), class_scheme=ClassScheme("mine", {1: 1, 7: 2})))
    truth = random_blobs((60, 90), count=9, seed=5)
    distance = distance_transform(truth)
    maps = np.stack([255 * (truth > 0), 255 * distance / distance.max(), 0 * truth], axis=2).astype(np.uint8)
    for folder in ("labels", "types"):
        (tmp_path / folder).mkdir()

    def write(name, ids):
        Image.fromarray(ids).save(tmp_path / name)

    for name in ("a", "b"):
        write(f"{name}.png", maps)
        write(f"labels/{name}.png", truth.astype(np.uint16))
        write(f"types/{name}.png", (7 * (truth > 0)).astype(np.uint8))
    text = "id,split,image,mpp\na,val,a.png,{}\nb,val,b.png\n"
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(text.format("0.5"), encoding="utf-8-sig")  # as spreadsheets write it
    scores = evaluate_dataset(tmp_path, engine=engine)
    assert (scores.images, scores.true_nuclei) == (2, 2 * truth.max())
    assert scores.per_class["two"].true_nuclei == 2 * truth.max()
    (tmp_path / "types" / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"types: expected a file for each of 2 images"):
        evaluate_dataset(tmp_path, engine=engine)
    write("types/b.png", np.full((60, 90), 300, np.uint16))
    with pytest.raises(DatasetError, match=r"b.png: class ids \[300\] are not in the model's scheme"):
        evaluate_dataset(tmp_path, engine=engine)
    write("labels/a.png", truth[:50].astype(np.uint16))
    with pytest.raises(DatasetError, match=r"labels/a.png: expected ids of shape \(60, 90\) as the image"):
        evaluate_dataset(tmp_path, engine=engine)
    manifest.write_text(text.format("nan"))
    with pytest.raises(DatasetError, match=r"a: mpp: expected um per pixel, .* or nothing, got 'nan'"):
        evaluate_dataset(tmp_path, engine=engine)
    manifest.write_bytes(text.encode("utf-16"))
    with pytest.raises(DatasetError, match=r"manifest.csv: cannot be read"):
        evaluate_dataset(tmp_path, engine=engine)
