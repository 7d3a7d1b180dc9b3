"""Ends a run that is told to end by SIGTERM, between two steps.

An exception that a signal's handler raises can get lost in a library's callback; so the
handler takes a note, and the steps look at it.
"""

import signal
import threading

from millrace_training.failure import TrainingError

_told = threading.Event()


def watch() -> None:
    """Take a note of SIGTERM from now on. Only the main thread can."""
    _told.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: _told.set())


def check() -> None:
    """Go on, or end here.

    Raises:
        TrainingError: interrupted.
    """
    if _told.is_set():
        raise TrainingError("interrupted", "the run was told to end")
