"""Why the interpreter gives up. None of these is the candidate's fault."""

from __future__ import annotations

ENOUGH_DRAWS = 3
"""Draws that must be done when the time runs out before the last one."""


class Unsupported(Exception):
    """The interpreter cannot do what a kernel asks; one phrase says what."""


class OutOfTime(BaseException):
    """The time for this candidate is spent. Not an Exception, so no handler of a candidate swallows it."""


class NotSampled(BaseException):
    """A sample of the programs cannot tell; the message says why. Not an Exception either."""
