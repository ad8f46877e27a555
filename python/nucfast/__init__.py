"""Every nucleus of a whole-slide image, outlined and classified."""
