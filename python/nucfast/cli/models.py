"""``nucfast models``."""

from __future__ import annotations

import json

import click

from nucfast.engine import load_bundle, shipped_names
from nucfast.errors import BundleError


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per model.")
def command(as_json: bool) -> int:
    """List the models that are installed: what they find, how well, and under which licence.

    Exit code 1 if one of them is damaged.
    """
    code = 0
    for name in shipped_names():
        try:
            bundle = load_bundle(name)
        except BundleError as error:
            click.echo(f"nucfast: {error}", err=True)
            code = 1
            continue
        names = [entry.name for entry in bundle.classes]
        if as_json:
            facts = {
                "name": bundle.name,
                "version": bundle.version,
                "description": bundle.description,
                "mpp": bundle.mpp,
                "classes": names,
                "licence": bundle.licence,
                "accuracy": [dict(entry) for entry in bundle.accuracy],
            }
            click.echo(json.dumps(facts))
            continue
        click.echo(f"{bundle.name} {bundle.version}: {bundle.description}")
        kinds = f"classes: {', '.join(names)}" if names else "outlines"
        click.echo(f"  {bundle.mpp:g} um/px; {kinds}; licence: {bundle.licence}")
        for entry in bundle.accuracy:
            figures = ", ".join(
                f"{key} {value:.3f}" for key, value in entry.items() if isinstance(value, float)
            )
            click.echo(f"  {entry['data']} {entry['split']}: {figures}")
    return code
