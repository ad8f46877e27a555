"""The choice of instruction set and the pool of threads, as Python sees them."""

import os
import subprocess
import sys
import textwrap

import pytest

from nucfast import _core

SETS = ["baseline", "avx2", "avx512"]


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


def test_set_isa_is_a_limit(isa):
    assert _core.set_isa("avx512") in SETS
    assert _core.set_isa(isa) == isa


def test_unknown_set_is_an_error():
    with pytest.raises(ValueError, match="limit: expected baseline, avx2 or avx512, got sse9"):
        _core.set_isa("sse9")


def test_the_environment_is_a_limit():
    code = """
        from nucfast import _core
        print(_core.set_isa(None))
    """
    assert run(code, NUCFAST_ISA="baseline").stdout == "baseline\n"
    wrong = run(code, NUCFAST_ISA="sse9")
    assert "ValueError: NUCFAST_ISA: expected baseline, avx2 or avx512, got sse9" in wrong.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_threads_work_on_both_sides_of_a_fork():
    code = """
        import os
        import numpy as np
        from nucfast import ops
        mask = np.random.default_rng(0).random((200, 200)) < 0.5
        expected = ops.label(mask, threads=1)
        assert (ops.label(mask, threads=4) == expected).all()
        child = os.fork()
        assert (ops.label(mask, threads=4) == expected).all()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    done = run(code)
    assert done.returncode == 0, done.stderr
