"""``nucfast info``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from nucfast.slide import open_slide
from nucfast.slide.mpp import check_option


@click.command("info")
@click.argument("slide", type=click.Path(path_type=Path))
@click.option("--mpp", type=float, help="um per pixel, for slides that do not say.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, with all properties of the file."
)
def command(slide: Path, mpp: float | None, as_json: bool) -> None:
    """Tell what SLIDE is: its size, its resolution and where that comes from, its levels."""
    check_option(mpp)
    with open_slide(slide, mpp=mpp) as opened:
        width, height = opened.dimensions
        um = opened.require_mpp()
        facts = {
            "path": str(slide),
            "reader": type(opened).__name__,
            "width": width,
            "height": height,
            "mpp": um,
            "mpp_source": opened.mpp_source,
            "mm2": round(width * height * um**2 / 1e6, 4),
            "bounds": list(opened.bounds),
            "levels": [[level.width, level.height, level.downsample] for level in opened.levels],
        }
        if as_json:
            click.echo(json.dumps(facts | {"properties": opened.properties}))
            return
        click.echo(f"{slide}  ({facts['reader']})")
        click.echo(f"  size        {width} x {height} px, {facts['mm2']:.2f} mm2")
        click.echo(f"  resolution  {um:g} um/px, from {opened.mpp_source}")
        for level in opened.levels:
            click.echo(f"  level       {level.width} x {level.height} px, 1/{level.downsample:g}")
