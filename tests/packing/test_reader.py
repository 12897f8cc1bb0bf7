import pytest
from hypothesis import given
from hypothesis import strategies as st

from lwc_compiler.errors import ArtifactError
from lwc_compiler.packing.reader import Reader, varint


@pytest.mark.parametrize(("number", "data"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")])
def test_bytes_of_a_number(number, data):
    assert varint(number) == data


@given(st.integers(0, 2**63 - 1))
def test_numbers_come_back(number):
    reader = Reader(varint(number) + b"rest")
    assert reader.varint() == number
    assert bytes(reader.take(reader.left)) == b"rest"


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9, b"\xff" * 100])
def test_bad_numbers(data):
    with pytest.raises(ArtifactError, match="damaged"):
        Reader(data).varint()


def test_nothing_is_read_past_the_end():
    reader = Reader(b"abc")
    assert reader.byte() == ord("a")
    with pytest.raises(ArtifactError, match="3 bytes are announced where 2 are left"):
        reader.take(3)
    assert bytes(reader.take(2)) == b"bc"
