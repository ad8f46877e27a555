"""The models that ship with the package, a folder each."""
