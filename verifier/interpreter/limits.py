"""Why the interpreter gives up. None of these is the candidate's fault."""

from __future__ import annotations


class Unsupported(Exception):
    """The interpreter cannot do what a kernel asks; one phrase says what."""


class OutOfTime(BaseException):
    """The time for this candidate is spent. Not an Exception, so no handler of a candidate swallows it."""


class NotSampled(BaseException):
    """A sample of the programs cannot tell; the message says why. Not an Exception either."""
