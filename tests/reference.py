"""Slow, obvious Python versions of the kernels: the specification the C++ is held to."""
