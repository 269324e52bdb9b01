"""Bodies in pieces: how much room each look at the line is given."""

from __future__ import annotations

import pytest

from s3fs_banyan.remote.http_body import LOOK_BYTES_MAX, each_look

KIB = 1 << 10


class Line:
    """Gives at most so many bytes a look, and remembers for how many there was room."""

    def __init__(self, length: int, at_once: int) -> None:
        self.left = length
        self.at_once = at_once
        self.rooms: list[int] = []

    def read1(self, room: int) -> bytes:
        self.rooms.append(room)
        given = min(room, self.at_once, self.left)
        self.left -= given
        return bytes(given)


@pytest.mark.parametrize("at_once", [1, 16 * KIB, 64 * KIB, 300 * KIB, 8 << 20])
def test_all_of_a_body_comes(at_once: int) -> None:
    line = Line(200 * at_once + 7, at_once)
    assert sum(len(piece) for piece in each_look(line.read1)) == 200 * at_once + 7


def test_where_little_comes_at_once_little_room_is_taken() -> None:
    """A look at a TLS connection gives one record; a MiB of room for each costs more than it."""
    line = Line(1 << 20, 16 * KIB)
    list(each_look(line.read1))
    assert set(line.rooms) == {64 * KIB}


def test_where_much_comes_at_once_there_is_room_for_it() -> None:
    """Each look is a system call."""
    line = Line(64 << 20, 8 << 20)
    list(each_look(line.read1))
    assert max(line.rooms) == LOOK_BYTES_MAX
    assert len(line.rooms) < 70


def test_room_follows_what_comes() -> None:
    """A line that became slow again gets less."""
    line = Line(4 << 20, 8 << 20)
    looks = each_look(line.read1)
    while line.rooms[-1:] != [LOOK_BYTES_MAX]:
        next(looks)
    line.at_once = KIB
    next(looks)
    next(looks)
    assert line.rooms[-1] == 64 * KIB


def test_an_error_of_the_line_goes_through() -> None:
    """The caller tells it with what it asked for."""

    def broken(room: int) -> bytes:
        raise ConnectionResetError(str(room))

    with pytest.raises(ConnectionResetError):
        list(each_look(broken))
