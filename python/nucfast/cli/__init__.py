"""The command ``nucfast``. Each subcommand is a module, imported when called, so that ``--help`` is quick."""

from __future__ import annotations

import importlib
import logging
import os
import sys

import click

from nucfast.cli.allocator import give_memory_back
from nucfast.errors import NucfastError

COMMANDS = {
    "infer": "outline and classify every nucleus of slides and folders of slides",
    "info": "what a slide is: size, resolution and where it comes from, levels",
    "models": "list the models that are installed",
    "evaluate": "score a model on an annotated data set",
    "train": "train a model from a recipe, or go on from a shipped one with your own annotations",
    "export": "write a model's bundle, or add a file for another precision or library to it",
    "benchmark": "how fast a model runs on the engines of this machine",
    "demo": "make a synthetic slide, find its nuclei, compare with the truth",
    "doctor": "what this installation has, and what is wrong with it",
}


class LazyCommands(click.Group):
    """Knows names and one-line helps; loads a command's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"nucfast.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="nucfast")
def group() -> None:
    """Every nucleus of a whole-slide image, outlined and classified.

    Results go to stdout, progress and messages to stderr. Exit codes: 0 all done, 1 some inputs failed,
    2 wrong usage, 130 interrupted (run the same command again to go on).
    """
    logging.basicConfig(format="nucfast: %(message)s", level=logging.WARNING, stream=sys.stderr)
    # What matters of tifffile's many warnings is in our one line.
    logging.getLogger("tifffile").propagate = False


def main() -> None:
    """Run the command line: an error that the user can mend is one line on stderr and exit code 2.

    Raises:
        KeyboardInterrupt: the user, or a batch system, ended it.
    """
    give_memory_back()
    # NumPy's own threads have next to nothing to do here, and spin while they wait for it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        code = group.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except NucfastError as error:
        click.echo(f"nucfast: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        name = error.filename or "standard output"
        click.echo(f"nucfast: {name}: {error.strerror}; make room, or name another place", err=True)
        # What is left of the output cannot be written at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
    except click.Abort:
        raise KeyboardInterrupt from None
    sys.exit(code if isinstance(code, int) else 0)
