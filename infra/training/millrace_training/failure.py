"""The ways in which a run ends without a model."""

from typing import Literal

Reason = Literal[
    "bad_request",
    "broken_column",
    "database_error",
    "database_unavailable",
    "internal_error",
    "interrupted",
    "no_training_set",
    "one_class",
    "registry_error",
    "too_little_data",
]
"""Why there is no model: for programs to decide by."""

TRANSIENT: frozenset[Reason] = frozenset({"database_unavailable", "interrupted", "registry_error"})
"""Reasons that may be gone when the same is asked for again."""


class TrainingError(Exception):
    """A run cannot give a model; nothing was registered.

    Args:
        reason: for programs.
        message: for people; it names what is wrong with which value.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the reason beside the message."""
        super().__init__(message)
        self.reason: Reason = reason

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.reason in TRANSIENT
