"""Errors of recipes and runs; those of data sets are ``nucfast.errors.DatasetError``."""

from __future__ import annotations

from nucfast.errors import NucfastError


class RecipeError(NucfastError):
    """A recipe is missing, malformed or asks for what does not exist; the message names the setting."""


class TrainingError(NucfastError):
    """A run cannot go on; the message names the setting to change and what is kept."""
