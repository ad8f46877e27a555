"""The default model on every CPU engine that is installed and in PyTorch, round by round in turn."""

import os
import statistics
import time

import numpy as np

from nucfast.engine import create_engine, load_bundle
from nucfast.engine.base import model_for
from nucfast.engine.openvino_engine import cpu_has_bf16, import_openvino
from nucfast.errors import NucfastError
from nucfast.testing import synthetic_slide

ROUNDS = 7
TILE_PX = 1024
PRECISIONS = {"openvino": ("fp32", "bf16", "int8"), "onnxruntime": ("fp32", "int8")}
BASELINE = "pytorch fp32"


def test_engines(benchmark):
    """``NUCFAST_BENCH_MODEL`` names another bundle, one with an int8 file for instance."""
    bundle = load_bundle(os.environ.get("NUCFAST_BENCH_MODEL", "he-fast"))
    image = synthetic_slide(TILE_PX, TILE_PX, nuclei_per_mm2=4000, seed=0).image
    tiles = np.stack([image, image[::-1]])
    engines, left_out = {}, {}
    for name, precisions in PRECISIONS.items():
        for precision in precisions:
            try:
                engines[f"{name} {precision}"] = create_engine(
                    bundle, engine=name, precision=precision, device="cpu"
                )
            except NucfastError as error:
                left_out[f"{name} {precision}"] = str(error)
    try:
        engines |= pytorch_engines(bundle)
    except ImportError as error:
        left_out["pytorch"] = str(error)
    seconds = {name: [] for name in engines}

    def run(name):
        started = time.perf_counter()
        maps = engines[name].run(tiles)
        seconds[name].append(time.perf_counter() - started)
        return maps

    expected = run("openvino fp32")
    for name in engines:
        maps = run(name)
        if not name.startswith("pytorch"):  # its weights are random: only its speed is of interest
            # Not the classes: they mean nothing outside nuclei, where int8 may change them freely.
            for key in ("nucleus", "distance"):
                assert np.abs(maps[key].astype(int) - expected[key]).mean() < 2, (name, key)
        seconds[name].clear()
    first, *others = engines

    def in_turn():
        for name in others:
            run(name)

    benchmark.pedantic(run, (first,), setup=in_turn, rounds=ROUNDS)
    megapixels = tiles.shape[0] * TILE_PX**2 / 1e6
    speed = {name: round(megapixels / statistics.median(values), 3) for name, values in seconds.items()}
    benchmark.extra_info.update(
        model=f"{bundle.name} {bundle.version}",
        runs_on={name: engine.description for name, engine in engines.items()},
        mpx_per_s=speed,
        times_baseline={
            name: round(value / speed[BASELINE], 3) for name, value in speed.items() if BASELINE in speed
        },
        left_out=left_out,
    )


def test_overhead(benchmark):
    """A tile through the engine and through OpenVINO itself, in turn: what all that the engine does costs."""
    bundle = load_bundle(os.environ.get("NUCFAST_BENCH_MODEL", "he-fast"))
    tile = synthetic_slide(512, 512, nuclei_per_mm2=4000, seed=0).image[None]
    engine = create_engine(bundle, engine="openvino", precision="int8", device="cpu")
    openvino = import_openvino()
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": engine.threads,
        "INFERENCE_PRECISION_HINT": "bf16" if cpu_has_bf16() else "f32",
        "ENABLE_CPU_PINNING": False,
    }
    model = core.read_model(bundle.read_file(model_for(bundle, "int8", engine="OpenVINO")))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    maps = engine.run(tile)
    ours, theirs = [], []

    def both():
        started = time.perf_counter()
        engine.run(tile, out=maps)
        between = time.perf_counter()
        request.infer([tile], share_inputs=True, share_outputs=True)
        ours.append(between - started)
        theirs.append(time.perf_counter() - between)

    both()
    for name in maps:
        assert np.array_equal(maps[name], request.get_tensor(name).data)
    benchmark.pedantic(both, rounds=20, iterations=10)
    benchmark.extra_info["engine_by_library"] = round(statistics.median(ours) / statistics.median(theirs), 4)


def pytorch_engines(bundle):
    from nucfast_export.torch_engine import TorchEngine
    from nucfast_training.networks import build_network

    network = build_network(bundle.training["recipe"])
    return {f"pytorch {kind}": TorchEngine(network, bundle, precision=kind) for kind in ("fp32", "bf16")}
