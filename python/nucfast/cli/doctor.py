"""``nucfast doctor``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from nucfast.errors import NucfastError, require
from nucfast.version import VERSION

# By distribution: its module, the extra that brings it (None: nucfast itself), and what needs it.
PACKAGES = {
    "openvino": ("openvino", None, "inference on the CPU"),
    "onnxruntime": ("onnxruntime", "cpu", "engine onnxruntime"),
    "onnxruntime-gpu": ("onnxruntime", "gpu", "engine onnxruntime on GPUs"),
    "tensorrt-cu13": ("tensorrt", "tensorrt", "engine tensorrt"),
    "tensorrt-rtx-cu13": ("tensorrt_rtx", "tensorrt-rtx", "engine tensorrt-rtx"),
    "openslide-python": ("openslide", None, "reading vendor formats"),
    "tifffile": ("tifffile", None, "reading TIFF and OME-TIFF"),
    "pyarrow": ("pyarrow", None, "GeoParquet"),
    "geopandas": ("geopandas", "pandas", "to_geopandas()"),
    "torch": ("torch", "train", "training"),
}


@click.command("doctor")
def command() -> int:
    """Tell what this installation has. Exit code 1 if something is wrong with it."""
    from nucfast.engine import (
        available_cpus,
        create_engine,
        import_openvino,
        load_bundle,
        onnxruntime_clash,
        shipped_names,
    )

    wrong: list[str] = []
    click.echo(f"nucfast {VERSION}, Python {platform.python_version()}, {platform.platform()}")
    click.echo(f"processors this process may use: {available_cpus()}")
    for name, (module, extra, purpose) in PACKAGES.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            if extra is not None:
                click.echo(f"  {name:18} not installed ({purpose}: pip install 'nucfast[{extra}]')")
                continue
            found = "not installed"
        try:
            if module == "openvino":
                import_openvino()
            else:
                require(module, extra=extra, purpose=purpose)
        except NucfastError as error:
            wrong.append(str(error))
            found += f": does not load ({purpose})"
        click.echo(f"  {name:18} {found}")
    clash = onnxruntime_clash()
    if clash is not None:
        wrong.append(clash)
    names = shipped_names()
    if not names:
        wrong.append("no model is installed: run  pip install --force-reinstall nucfast")
    for name in names:
        try:
            bundle = load_bundle(name)
            runs_on = create_engine(bundle).description
        except NucfastError as error:
            wrong.append(str(error))
            continue
        click.echo(f"model {bundle.name} {bundle.version}: files intact; runs on {runs_on}")
    for problem in dict.fromkeys(wrong):
        click.echo(f"problem: {problem}", err=True)
    click.echo("problems: " + (str(len(set(wrong))) if wrong else "none"))
    return 1 if wrong else 0
