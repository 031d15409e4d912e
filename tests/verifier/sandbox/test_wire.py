"""The framing: whole messages pass, everything else is a FrameError and nothing but that."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.sandbox import wire

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@settings(max_examples=50)
@given(value=VALUES, blobs=st.dictionaries(st.text(), st.binary()))
def test_a_message_comes_back_as_it_was(value: object, blobs: dict[str, bytes]) -> None:
    message = b"".join(wire.pack({"value": value}, blobs))
    assert wire.unpack(message) == ({"value": value}, blobs)


@settings(max_examples=200)
@given(header=st.binary(), tail=st.binary())
def test_random_headers_raise_nothing_else(header: bytes, tail: bytes) -> None:
    with pytest.raises(wire.FrameError):
        wire.unpack(wire.MAGIC + len(header).to_bytes(4, "little") + header + b"!" + tail)


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_every_cut_is_noticed(cut: int) -> None:
    message = b"".join(wire.pack({"value": 1}, {"name": b"0123456789" * 3}))
    with pytest.raises(wire.FrameError):
        wire.unpack(message[: cut - 60])


@pytest.mark.parametrize(
    "blobs",
    [
        "{}",
        '[["a"]]',
        '[["a", -1]]',
        '[["a", true]]',
        '[["a", 1.0]]',
        '[["a", 1], ["a", 0]]',
        "[[1, 1]]",
        '[["a", 1e99]]',
    ],
)
def test_malformed_lists_of_blobs_are_refused(blobs: str) -> None:
    header = f'{{"blobs": {blobs}}}'.encode()
    with pytest.raises(wire.FrameError):
        wire.unpack(wire.MAGIC + len(header).to_bytes(4, "little") + header + b"x")


def test_blobs_must_be_bytes_with_names() -> None:
    for blobs in ({"a": "text"}, {1: b""}, {"a": bytearray(b"x")}):
        with pytest.raises(TypeError):
            list(wire.pack({}, blobs))  # type: ignore[arg-type]
