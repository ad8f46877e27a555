"""The version, once: what the installed distribution says."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("nucfast")
except PackageNotFoundError:  # a checkout on the path, not installed
    VERSION = "0.0.0+checkout"
