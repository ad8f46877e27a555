"""The command ``nucfast``, also as ``python -m nucfast``."""

import signal
import sys


def main() -> None:
    """Run the command; an interrupt is one line and exit code 130 from the first import on."""
    # Batch systems end jobs by SIGTERM; what is finished stays finished, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from nucfast.cli import main as run

        run()
    except KeyboardInterrupt:
        print("nucfast: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
