"""The error of this package."""


class TrainingError(ValueError):
    """A training cannot start or go on; the message says why and what helps."""
