"""What one side of the line can do to the other: nothing but end it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.gpu.protocol import FROM_JUDGE, FROM_RUNNER, Caps, Channel, Expired, Gone, ProtocolError, read_reply
from verifier.sandbox import wire

Pair = tuple[Channel, Channel]
SECONDS = 60.0
"""A deadline where nothing hangs."""


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A judge's end, which believes nobody, and a runner's."""
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, two:
        yield Channel(one, FROM_RUNNER), Channel(two, FROM_JUDGE)


def test_a_message_arrives_with_blobs_and_descriptors(pair: Pair) -> None:
    judge, runner = pair
    read, write = os.pipe()
    blob = os.urandom(3 << 20)  # more than a socket holds
    given = ({"a": [1, None]}, {"b": blob}, [write])
    sender = threading.Thread(target=judge.send, args=given, kwargs={"seconds": SECONDS})
    sender.start()
    message = runner.receive(seconds=SECONDS)
    sender.join()
    os.close(write)
    assert (message.header, message.blobs) == ({"a": [1, None]}, {"b": blob})
    os.write(message.fds[0], b"x")
    os.close(message.fds[0])
    assert os.read(read, 2) == b"x"
    os.close(read)


def test_descriptors_of_a_runner_are_dropped(pair: Pair) -> None:
    judge, runner = pair
    before = len(os.listdir("/proc/self/fd"))
    runner.send({}, fds=[0, 1, 2], seconds=SECONDS)
    with pytest.raises(ProtocolError, match="another number"):
        judge.receive(seconds=SECONDS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_many_descriptors_are_refused_and_closed() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, two:
        before = len(os.listdir("/proc/self/fd"))
        Channel(two, FROM_JUDGE).send({}, fds=[0] * 5, seconds=SECONDS)
        with pytest.raises(ProtocolError):
            Channel(one, Caps(1 << 10, 0, 2)).receive(seconds=SECONDS)
        assert len(os.listdir("/proc/self/fd")) == before


def test_caps_hold_before_anything_is_read(pair: Pair) -> None:
    judge, runner = pair
    runner.send({}, {"b": b"x"}, seconds=SECONDS)
    with pytest.raises(ProtocolError, match="blobs of 1 bytes"):
        judge.receive(seconds=SECONDS)


def test_a_message_that_does_not_end_is_given_up(pair: Pair) -> None:
    judge, runner = pair
    runner.socket.send(b"".join(wire.pack({"fds": 0}, {}))[:-1])
    with pytest.raises(Expired):
        judge.receive(seconds=0.1)


def test_drops_do_not_postpone_the_deadline(pair: Pair) -> None:
    judge, runner = pair
    over, sent = threading.Event(), []

    def drip() -> None:
        runner.socket.send(wire.MAGIC + (6000).to_bytes(4, "little"))  # two minutes of drops
        while not over.wait(0.02):
            sent.append(runner.socket.send(b"x"))

    dripping = threading.Thread(target=drip)
    dripping.start()
    with pytest.raises(Expired):
        judge.receive(seconds=0.3)
    over.set()
    dripping.join()
    assert len(sent) < 6000


def test_a_closed_line_is_gone(pair: Pair) -> None:
    judge, runner = pair
    runner.close()
    with pytest.raises(Gone):
        judge.receive(seconds=SECONDS)


def test_one_who_does_not_read_does_not_block(pair: Pair) -> None:
    with pytest.raises(Expired):
        pair[0].send({}, {"b": bytes(8 << 20)}, seconds=0.1)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_noise_raises_nothing_else(noise: bytes, framed: bool) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with one, two:
        two.send(wire.MAGIC + len(noise).to_bytes(4, "little") + noise if framed else noise + b"\0")
        two.close()
        with pytest.raises((ProtocolError, Gone)):
            Channel(one, FROM_RUNNER).receive(seconds=SECONDS)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@settings(max_examples=50, deadline=None)
@given(JUNK)
def test_an_answer_is_read_strictly(said: object) -> None:
    with pytest.raises(ProtocolError):
        read_reply(said, 3)


@pytest.mark.parametrize(
    "said",
    [
        {"turn": 4},
        {"turn": 3.0},
        {"turn": 3, "seconds": [-1.0]},
        {"turn": 3, "seconds": [float("nan")]},
        {"turn": 3, "seconds": [1.0] * 5000},
        {"turn": 3, "failure": "none"},
        {"turn": 3, "text": "x" * 5000},
        {"turn": 3, "status": "correct"},
        {"turn": 3, "clock_hz": 0.0},
    ],
)
def test_an_answer_beyond_its_bounds_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        read_reply(said, 3)


def test_an_honest_answer_is_read() -> None:
    assert read_reply({"turn": 3, "seconds": [0.5], "untimed_seconds": 0}, 3).seconds == (0.5,)
