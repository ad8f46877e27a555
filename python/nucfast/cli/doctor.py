"""``nucfast doctor``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from nucfast.errors import NucfastError
from nucfast.version import VERSION

PACKAGES = {
    "openvino": "the CPU engine",
    "onnxruntime": "pip install 'nucfast[cpu]'",
    "onnxruntime-gpu": "pip install 'nucfast[gpu]'",
    "tensorrt-cu13": "pip install 'nucfast[tensorrt]'",
    "tensorrt-rtx-cu13": "pip install 'nucfast[tensorrt-rtx]'",
    "openslide-python": "vendor formats",
    "tifffile": "TIFF and OME-TIFF",
    "pyarrow": "GeoParquet",
    "geopandas": "pip install 'nucfast[pandas]'",
    "torch": "pip install 'nucfast[train]'",
}
REQUIRED = {"openvino", "openslide-python", "tifffile", "pyarrow"}


@click.command("doctor")
def command() -> int:
    """Tell what this installation has. Exit code 1 if something is wrong with it."""
    from nucfast.engine import available_cpus, create_engine, list_bundles, onnxruntime_clash

    wrong: list[str] = []
    click.echo(f"nucfast {VERSION}, Python {platform.python_version()}, {platform.platform()}")
    click.echo(f"processors this process may use: {available_cpus()}")
    found = {}
    for name, purpose in PACKAGES.items():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
            if name in REQUIRED:
                wrong.append(f"{name} is missing ({purpose}): pip install --force-reinstall nucfast")
        click.echo(f"  {name:18} {found[name] or f'not installed ({purpose})'}")
    clash = onnxruntime_clash()
    if clash is not None:
        wrong.append(clash)
    try:
        bundles = list_bundles()
        if not bundles:
            wrong.append("no model is installed: pip install --force-reinstall nucfast")
        for bundle in bundles:
            runs_on = create_engine(bundle).description
            click.echo(f"model {bundle.name} {bundle.version}: files intact; runs on {runs_on}")
    except NucfastError as error:
        wrong.append(str(error))
    for problem in wrong:
        click.echo(f"problem: {problem}", err=True)
    click.echo("problems: " + (str(len(wrong)) if wrong else "none"))
    return 1 if wrong else 0
