"""``python -m nucfast`` is the command ``nucfast``."""

from nucfast.cli import main

main()
