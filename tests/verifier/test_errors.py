"""What is left of long messages: one line that says why."""

from __future__ import annotations

import pytest

from verifier.errors import first_line, last_words

BUSY = """\
Traceback (most recent call last):
  File "nursery.py", line 70, in _become_runner
    runner.run(end, flags, self._factory)
torch.AcceleratorError: CUDA error: all CUDA-capable devices are busy or unavailable
CUDA kernel errors might be asynchronously reported at some other API call.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
"""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (BUSY, "torch.AcceleratorError: CUDA error: all CUDA-capable devices are busy or unavailable"),
        (
            "Fatal Python error: Segmentation fault\n\nCurrent thread:\n  File 'a'",
            "Fatal Python error: Segmentation fault",
        ),
        ("one\ntwo\n\n", "two"),
        ("\n", "it ended without a message"),
    ],
)
def test_a_log_comes_down_to_the_line_that_names_its_error(log: str, said: str) -> None:
    assert last_words(log) == said


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("a\nb"), "a"), (KeyError(), "KeyError"), (OSError(""), "OSError")]
)
def test_an_exception_without_words_has_its_name(error: Exception, said: str) -> None:
    assert first_line(error) == said
