from __future__ import annotations

import pytest

from nucfast.engine.cache import cached_engine
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
