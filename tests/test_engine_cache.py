from __future__ import annotations

import pytest

from nucfast.engine.cache import HEADER, cached_engine, cached_folder
from nucfast.errors import EngineError

SLOT = {"network": "tiny", "device": "GPU 0", "precision": "fp16", "shape": "16x64"}
MADE_WITH = {"sha256_of_model": "00", "version": "1.0"}


def builder(content):
    calls = []

    def build():
        calls.append(content)
        return content

    build.calls = calls
    return build


def test_built_once(tmp_path):
    build = builder(b"engine\nof two lines")
    for _ in range(2):
        assert cached_engine(SLOT, MADE_WITH, build, folder=tmp_path / "c") == b"engine\nof two lines"
    assert len(build.calls) == 1
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["tiny-GPU_0-fp16-16x64.engine"]


@pytest.mark.parametrize("change", [{"version": "2.0"}, {"sha256_of_model": "01"}])
def test_stale_is_rebuilt(tmp_path, change):
    cached_engine(SLOT, MADE_WITH, builder(b"old"), folder=tmp_path)
    assert cached_engine(SLOT, MADE_WITH | change, builder(b"new"), folder=tmp_path) == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_damaged_is_rebuilt(tmp_path):
    cached_engine(SLOT, MADE_WITH, builder(b"engine"), folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert cached_engine(SLOT, MADE_WITH, builder(b"engine"), folder=tmp_path) == b"engine"


@pytest.mark.parametrize("content", [b"", b"\x00\x01", b"[]\n", b'{"magic": "other"}\n'])
def test_foreign_is_refused(tmp_path, content):
    path = tmp_path / "tiny-GPU_0-fp16-16x64.engine"
    path.write_bytes(content)
    with pytest.raises(EngineError, match="is not an engine that nucfast built: remove it"):
        cached_engine(SLOT, MADE_WITH, builder(b"engine"), folder=tmp_path)
    assert path.read_bytes() == content


def test_nowhere_to_keep_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="set NUCFAST_CACHE to a folder that can be written"):
        cached_engine(SLOT, MADE_WITH, builder(b"engine"), folder=tmp_path / "file" / "cache")


class TestFolder:
    """For a library that writes its engines into a folder by itself."""

    def build(self, root, content, made_with=MADE_WITH):
        """Whether it had to be built, and what is there."""
        with cached_folder(SLOT, made_with, folder=root) as path:
            built = not (path / "a.engine").exists()
            if built:
                assert list(path.iterdir()) == []
                (path / "a.engine").write_text(content)
            return built, (path / "a.engine").read_text()

    def test_built_once(self, tmp_path):
        assert self.build(tmp_path / "c", "old") == (True, "old")
        assert self.build(tmp_path / "c", "new") == (False, "old")
        assert [path.name for path in (tmp_path / "c").iterdir()] == ["tiny-GPU_0-fp16-16x64.engines"]

    @pytest.mark.parametrize("change", [{"version": "2.0"}, {"sha256_of_model": "01"}])
    def test_stale_is_rebuilt(self, tmp_path, change):
        self.build(tmp_path, "old")
        assert self.build(tmp_path, "new", MADE_WITH | change) == (True, "new")
        assert len(list(tmp_path.iterdir())) == 1

    def test_nothing_is_kept_of_a_build_that_failed(self, tmp_path):
        with pytest.raises(ZeroDivisionError), cached_folder(SLOT, MADE_WITH, folder=tmp_path) as path:
            (path / "a.engine").write_text("half")
            _ = 1 / 0
        assert list(tmp_path.iterdir()) == []

    def test_another_process_was_first(self, tmp_path):
        with cached_folder(SLOT, MADE_WITH, folder=tmp_path) as path:
            (path / "a.engine").write_text("mine")
            self.build(tmp_path, "theirs")
        assert self.build(tmp_path, "new") == (False, "mine")
        assert len(list(tmp_path.iterdir())) == 1

    def test_foreign_is_refused(self, tmp_path):
        path = tmp_path / "tiny-GPU_0-fp16-16x64.engines"
        path.mkdir()
        (path / "photo.jpg").write_text("cat")
        with pytest.raises(EngineError, match="is not an engine that nucfast built: remove it"):
            self.build(tmp_path, "new")
        (path / HEADER).write_text('{"magic": "other"}')
        with pytest.raises(EngineError, match="is not an engine that nucfast built: remove it"):
            self.build(tmp_path, "new")
        assert (path / "photo.jpg").read_text() == "cat"

    def test_nowhere_to_keep_it(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(EngineError, match="set NUCFAST_CACHE to a folder that can be written"):
            self.build(tmp_path / "file" / "cache", "new")
