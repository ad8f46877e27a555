"""Result files follow the regions in order, and are dropped when nobody wants them."""

from dataclasses import replace
from queue import SimpleQueue

import pytest

from nucfast.errors import OutputError
from nucfast.pipeline.journal import Journal, Worker
from nucfast.pipeline.results import ResultFiles, Stopped
from nucfast.pipeline.stages import Stages
from nucfast.testing import assert_nuclei_equal
from test_nuclei import make_nuclei

WAIT = 60  # seconds after which a thread that should have come is taken for lost


@pytest.fixture
def journal(tmp_path):
    with Worker(tmp_path) as worker:
        yield Journal(tmp_path / "work", worker)


def test_regions_are_taken_in_order_while_others_are_missing(journal):
    stages, taken = Stages(), SimpleQueue()

    def write(regions):
        for nuclei in regions:
            taken.put(len(nuclei))

    with ResultFiles(journal, [4, 5, 7], files=1, stages=stages) as files:
        files.add(write)
        journal.write(5, make_nuclei(2))
        journal.write(4, make_nuclei(1))
        assert [taken.get(timeout=WAIT), taken.get(timeout=WAIT)] == [1, 2]
        assert taken.empty()
        journal.write(7, make_nuclei(3))
        files.wait()
    assert taken.get(timeout=WAIT) == 3
    assert stages.seconds["write"] > 0


def test_files_that_are_not_wanted_any_more_are_stopped(journal):
    ended = SimpleQueue()

    def write(regions):
        try:
            list(regions)
        except Stopped as error:
            ended.put(error)

    with pytest.raises(KeyboardInterrupt), ResultFiles(journal, [0, 1], files=1, stages=Stages()) as files:
        files.add(write)
        journal.write(0, make_nuclei(1))
        raise KeyboardInterrupt
    assert isinstance(ended.get(timeout=WAIT), Stopped)
    with pytest.raises(Stopped):
        files.check()


def test_errors_of_the_threads_are_raised(journal):
    with ResultFiles(journal, [0], files=2, stages=Stages()) as files:
        files.add(list)
        (journal.folder / "000000.part").write_bytes(b"not a region")
        with pytest.raises(OutputError, match="damaged"):
            files.wait()


def test_a_region_is_the_same_from_memory_and_from_its_file(tmp_path, journal):
    regions = [replace(make_nuclei(count), meta={"oversized": [count]}) for count in range(9)]
    for index, nuclei in enumerate(regions):
        journal.write(index, nuclei)
    with Worker(tmp_path) as worker:
        anew = Journal(tmp_path / "work", worker)
        for index, nuclei in enumerate(regions):
            for found in (journal.read(index), anew.read(index)):
                assert_nuclei_equal(found, nuclei)
                assert found.meta == nuclei.meta
