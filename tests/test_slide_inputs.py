"""Which files are the slides of a run."""

import errno
import os
from pathlib import Path

import pytest

from nucfast.errors import SlideError
from nucfast.slide import SlideInput, files_of, find_slides, open_slide


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def names(found):
    return [slide.relative_name for slide in found]


def test_every_file_of_a_folder_counts_but_hidden_ones_and_sidecars(tmp_path):
    make(tmp_path, "b.svs", "a.png", "broken.svs", "notes.txt", "sub/deep/c.tif", "no-suffix")
    make(
        tmp_path,
        ".hidden.svs",
        ".cache/x.svs",
        "b.xml",
        "b.geojson",
        "b.geojson.gz",
        "Thumbs.db",
        "b.svs.md5",
    )
    found = find_slides([tmp_path])
    assert names(found) == ["a.png", "b.svs", "broken.svs", "no-suffix", "notes.txt", "sub/deep/c.tif"]
    assert found[-1] == SlideInput(tmp_path / "sub/deep/c.tif", "sub/deep/c.tif", None)


def test_files_keep_their_order_and_missing_ones_stay(tmp_path):
    make(tmp_path, "b.svs", "a.svs")
    found = find_slides([str(tmp_path / "b.svs"), tmp_path / "gone.svs", tmp_path / "a.svs"])
    assert names(found) == ["b.svs", "gone.svs", "a.svs"]


def test_a_file_named_twice_is_one_input(tmp_path):
    make(tmp_path, "b.svs", "sub/a.svs")
    (tmp_path / "link.svs").symlink_to(tmp_path / "b.svs")
    found = find_slides([tmp_path / "b.svs", tmp_path, tmp_path / "sub" / ".." / "b.svs"])
    assert names(found) == ["b.svs", "sub/a.svs"]


def test_equal_names_of_different_files_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    make(tmp_path, "x/one/a.svs", "x/two/a.svs", "x/two/b.svs", "c.svs")
    one, two = tmp_path / "x" / "one", tmp_path / "x" / "two"
    expected = ["one/a.svs", "two/a.svs", "b.svs", "c.svs"]
    assert names(find_slides([one, two, tmp_path / "c.svs"])) == expected
    assert names(find_slides([one / "a.svs", two / "a.svs"])) == expected[:2]
    (tmp_path / "list.csv").write_text(f"path\n{one}/a.svs\n{two}/a.svs\n")
    assert names(find_slides([tmp_path / "list.csv"])) == expected[:2]
    monkeypatch.chdir(one)
    assert names(find_slides(["a.svs", "../two/a.svs"])) == expected[:2]
    assert names(find_slides(["../.."])) == ["c.svs", "x/one/a.svs", "x/two/a.svs", "x/two/b.svs"]
    make(tmp_path, "deep/one/a.svs")
    with pytest.raises(SlideError, match=r"one/a.svs: would share the output one/a.svs with .*; name the"):
        find_slides([tmp_path / "deep", one, two])


def test_patterns(tmp_path):
    make(tmp_path, "one/a.svs", "one/b.tif", "two/a.svs", "two/.x.svs", "a[1].svs")
    assert names(find_slides([f"{tmp_path}/*/*.svs"])) == ["one/a.svs", "two/a.svs"]
    assert names(find_slides([f"{tmp_path}/**/*.tif"])) == ["one/b.tif"]
    assert names(find_slides([f"{tmp_path}/a[1].svs"])) == ["a[1].svs"]
    with pytest.raises(SlideError, match=r"\*.ndpi: no file matches; check the pattern"):
        find_slides([tmp_path / "*.ndpi"])


def test_relative_patterns(tmp_path, monkeypatch):
    make(tmp_path, "a.svs", "sub/b.svs")
    monkeypatch.chdir(tmp_path)
    assert find_slides(["*.svs"]) == [SlideInput(Path("a.svs"), "a.svs", None)]
    assert names(find_slides(["sub/*"])) == ["b.svs"]
    assert names(find_slides(["."])) == ["a.svs", "sub/b.svs"]


def test_the_output_folder_is_no_input(tmp_path):
    make(tmp_path, "a.svs", "out/a.svs/nuclei.bin")
    assert names(find_slides([tmp_path], exclude=[tmp_path / "out"])) == ["a.svs"]
    assert names(find_slides([f"{tmp_path}/**"], exclude=[tmp_path / "out"])) == ["a.svs"]


def test_results_of_earlier_runs_are_no_inputs(tmp_path):
    make(tmp_path, "a.svs", "out/a.svs/overlay.png", "out/a.svs/more/x.png", "photos/overlay.png")
    (tmp_path / "out/a.svs/run.json").write_text('{"nucfast": "1.0", "fingerprint": "f"}')
    for text in ("[]", "no JSON", '{"nucfast": "1.0"}'):
        (tmp_path / "photos/run.json").write_text(text)
        assert names(find_slides([tmp_path])) == ["a.svs", "photos/overlay.png"]
    assert names(find_slides([f"{tmp_path}/**/*.png"])) == ["out/a.svs/more/x.png", "photos/overlay.png"]
    with pytest.raises(SlideError, match="no slide in this folder"):
        find_slides([tmp_path / "out"])


def test_results_do_not_go_where_the_slides_lie(tmp_path):
    make(tmp_path, "a.svs", "in/b.svs")
    for inputs in (tmp_path, tmp_path / "a.svs", f"{tmp_path}/*.svs"):
        with pytest.raises(SlideError, match=r"a.svs: lies where its results would go; choose another .* -o"):
            find_slides([inputs], exclude=[tmp_path])
    assert names(find_slides([tmp_path / "in"], exclude=[tmp_path])) == ["b.svs"]
    assert names(find_slides([tmp_path / "gone.svs"], exclude=[tmp_path])) == ["gone.svs"]


def test_empty_folder(tmp_path):
    make(tmp_path, ".hidden", "list.csv")
    with pytest.raises(SlideError, match=r": no slide in this folder; name the folder"):
        find_slides([tmp_path])


def test_what_cannot_be_read_is_an_input_that_fails(tmp_path, monkeypatch):
    make(tmp_path, "a.svs", "sub/b.svs", "closed/c.svs")
    (tmp_path / "sub" / "dangling.svs").symlink_to(tmp_path / "gone.svs")
    (tmp_path / "sub" / "itself").symlink_to("itself")
    (tmp_path / "empty").mkdir()
    scandir = os.scandir

    def without_rights(path):  # chmod does not stop root
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", without_rights)
    monkeypatch.setattr(os, "listdir", without_rights)
    found = find_slides([tmp_path, tmp_path / "empty"])
    assert names(found) == ["a.svs", "sub/b.svs", "sub/dangling.svs", "sub/itself", "closed", "empty"]
    assert names(find_slides([f"{tmp_path}/sub/*.svs"])) == ["b.svs", "dangling.svs"]
    for slide, reason in zip(
        found[2:],
        [
            "no such file; check the path",
            r"cannot be read \(Too many levels of symbolic links\)",
            r"cannot be read \(Permission denied\); check its permissions",
            "no slide in this folder; name the folder or the file that holds one",
        ],
        strict=True,
    ):
        with pytest.raises(SlideError, match=f"{slide.path}: {reason}"):
            open_slide(slide.path)
    assert names(find_slides([tmp_path / "closed"])) == ["closed"]


def test_a_file_in_a_closed_folder_is_kept(tmp_path, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    assert names(find_slides([tmp_path / "a.svs"])) == ["a.svs"]


def test_links_in_a_circle_end(tmp_path):
    make(tmp_path, "sub/a.svs")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    assert names(find_slides([tmp_path])) == ["sub/a.svs"]


def test_slides_of_several_files_count_once(tmp_path):
    make(
        tmp_path,
        "m.mrxs",
        "m/Slidedat.ini",
        "m/Data0001.dat",
        "other/x.tif",
        "v-1.jpg",
        "v-2.jpg",
        "photo.jpg",
    )
    (tmp_path / "v.vms").write_text("[Virtual Microscope Specimen]\nImageFile=v-1.jpg\nMapFile=v-2.jpg\n")
    assert names(find_slides([tmp_path])) == ["m.mrxs", "photo.jpg", "v.vms", "other/x.tif"]


def dicom(uid):
    return (
        bytes(128)
        + b"DICM"
        + bytes(40)
        + b"\x20\x00\x0e\x00UI"
        + len(uid).to_bytes(2, "little")
        + uid
        + bytes(99)
    )


def test_levels_of_one_dicom_series_count_once(tmp_path):
    for name, uid in [
        ("1.dcm", b"1.2.3\0"),
        ("2.dcm", b"1.2.3\0"),
        ("3.dcm", b"1.2.4\0"),
        ("sub/1.dcm", b"1.2.3\0"),
    ]:
        make(tmp_path, name)
        (tmp_path / name).write_bytes(dicom(uid))
    make(tmp_path, "bad1.dcm", "bad2.dcm")
    assert names(find_slides([tmp_path])) == ["1.dcm", "3.dcm", "bad1.dcm", "bad2.dcm", "sub/1.dcm"]


def test_the_files_of_a_slide(tmp_path):
    make(tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0001.dat", "n.mrxs", "v-1.jpg", "v-2.jpg", "a.svs")
    (tmp_path / "v.vms").write_text("[Virtual Microscope Specimen]\nImageFile=v-2.jpg\nMapFile=v-1.jpg\nX=\n")
    for name, uid in [("1.dcm", b"1.2.3\0"), ("2.dcm", b"1.2.3\0"), ("3.dcm", b"1.2.4\0")]:
        (tmp_path / name).write_bytes(dicom(uid))
    for name, parts in {
        "a.svs": [],
        "m.mrxs": ["m/Data0001.dat", "m/Slidedat.ini"],
        "n.mrxs": [],
        "v.vms": ["v-1.jpg", "v-2.jpg"],
        "2.dcm": ["1.dcm"],
        "gone.vms": [],
    }.items():
        assert files_of(tmp_path / name) == [tmp_path / part for part in (name, *parts)]


def test_csv(tmp_path):
    make(tmp_path, "a.svs", "sub/b.png", "elsewhere/c.svs")
    table = tmp_path / "list.csv"
    table.write_text(
        f"\ufeffpath,mpp,note\na.svs,,x\nsub/b.png, 0.25 ,y\n{tmp_path}/elsewhere/c.svs,0.5,z\n",
        encoding="utf-8",
    )
    found = find_slides([table])
    assert [(name, mpp) for _, name, mpp in found] == [("a.svs", None), ("sub/b.png", 0.25), ("c.svs", 0.5)]
    assert all(slide.path.exists() for slide in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a column 'path', and perhaps 'mpp', got nothing"),
        ("slide,mpp\na,1\n", "expected a column 'path', and perhaps 'mpp', got slide, mpp"),
        ("path,mpp\n", "no row below the header"),
        ("path,mpp\na.svs,0.25\nb.svs,twenty\n", "row 3: mpp: expected um per pixel, .* got 'twenty'"),
        ("path,mpp\na.svs,-1\n", "row 2: mpp: expected um per pixel, 0.05 to 20 .*, got '-1'"),
        ("path,mpp\na.svs,90\n", "row 2: mpp: expected um per pixel, 0.05 to 20 .*, got '90'"),
        ("path,mpp\na.svs,1e-4\n", "row 2: mpp: expected um per pixel, 0.05 to 20 .*, got '1e-4'"),
        (
            "path,mpp\na.svs,0.25\nb.svs,\nsub/../a.svs,0.5\n",
            "rows 2 and 4 name sub/../a.svs with different mpp",
        ),
        ("path,mpp\n ,0.5\n", "row 2 has no path"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(SlideError, match=rf"list.csv: {message}.*;"):
        find_slides([tmp_path / "list.csv"])


def test_the_mpp_of_a_list_counts_wherever_else_the_slide_is_named(tmp_path):
    make(tmp_path, "a.svs", "b.svs")
    (tmp_path / "list.csv").write_text("path,mpp\na.svs,0.25\na.svs,0.25\n")
    (tmp_path / "other.csv").write_text("path,mpp\na.svs,0.5\n")
    for inputs in ([tmp_path, tmp_path / "list.csv"], [tmp_path / "list.csv", tmp_path]):
        assert {slide.relative_name: slide.mpp for slide in find_slides(inputs)} == {
            "a.svs": 0.25,
            "b.svs": None,
        }
    with pytest.raises(SlideError, match=r"a.svs: named with mpp 0.25 and with 0.5; name it once"):
        find_slides([tmp_path / "list.csv", tmp_path / "other.csv"])


def test_csv_that_is_no_text(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(SlideError, match=r"list.csv: cannot be read as CSV .*; save it as UTF-8"):
        find_slides([tmp_path / "list.csv"])


def test_each_bad_input_of_a_folder_gets_its_own_line(tmp_path):
    """The whole way: find, then open each; every bad file gets one line with reason and remedy."""
    from PIL import Image

    from nucfast.slide import write_slide

    image = Image.new("RGB", (40, 40), (200, 100, 150))
    image.save(tmp_path / "photo.png")
    make(tmp_path, "broken.svs", "notes.txt")
    import numpy as np

    write_slide(tmp_path / "good.svs", np.asarray(image), mpp=0.5)
    errors = {}
    for path, name, mpp in find_slides([tmp_path]):
        try:
            open_slide(path, mpp=mpp).close()
        except SlideError as error:
            errors[name] = str(error)
    assert sorted(errors) == ["broken.svs", "notes.txt", "photo.png"]
    for name, text in errors.items():
        assert text.startswith(str(tmp_path / name)), text
        assert text.count("\n") == 0
    assert "--mpp" in errors["photo.png"]
    assert "remove it" in errors["notes.txt"]
