"""Training of the networks that nucfast ships; needs the extra ``nucfast[train]``."""
