"""The default model on every CPU engine that is installed."""

import numpy as np
import pytest

from nucfast.engine import create_engine, load_bundle
from nucfast.errors import NucfastError
from nucfast.testing import synthetic_slide


@pytest.fixture(scope="module")
def tiles():
    image = synthetic_slide(1024, 1024, nuclei_per_mm2=4000, seed=0).image
    return np.stack([image, image[::-1]])


@pytest.mark.benchmark(group="he-fast, 1024 px tiles")
@pytest.mark.parametrize(
    ("engine", "precision"), [("openvino", "bf16"), ("openvino", "fp32"), ("onnxruntime", "fp32")]
)
def test_engine(benchmark, tiles, engine, precision):
    bundle = load_bundle("he-fast")
    try:
        runner = create_engine(bundle, engine=engine, precision=precision, device="cpu")
    except NucfastError as error:
        pytest.skip(str(error))
    maps = benchmark.pedantic(runner.run, (tiles,), rounds=5, warmup_rounds=1)
    benchmark.extra_info["mpx_per_s"] = round(2 * 1.048576 / benchmark.stats.stats.median, 2)
    benchmark.extra_info["runs_on"] = runner.description
    assert maps["nucleus"].max() > 200
