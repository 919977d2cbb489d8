"""Which connection gives way to a new one, without a server."""

import socket
import threading

import pytest

from mlx_budget.server.limits import Connections, Deadline, Limits


@pytest.fixture
def pairs():
    """Makes connections: the server's end and the client's."""
    made = []

    def make(count: int) -> tuple[list[socket.socket], list[socket.socket]]:
        made.extend(socket.socketpair() for _ in range(count))
        return [a for a, _ in made], [b for _, b in made]

    yield make
    for ends in made:
        for end in ends:
            end.close()


def test_the_one_that_has_waited_longest_gives_way(pairs):
    ours, theirs = pairs(4)
    connections = Connections(2)
    assert all(map(connections.take, ours))
    assert [end.recv(1) for end in theirs[:2]] == [b"", b""]
    assert len(connections) == 2
    # The others are still there.
    theirs[3].settimeout(0)
    with pytest.raises(BlockingIOError):
        theirs[3].recv(1)
    assert not connections.answer(ours[0])
    assert connections.answer(ours[2])


def test_one_that_is_answered_never_gives_way(pairs):
    ours, theirs = pairs(3)
    connections = Connections(2)
    for connection in ours[:2]:
        assert connections.take(connection)
        assert connections.answer(connection)
    assert not connections.take(ours[2])
    connections.drop(ours[0])
    assert connections.take(ours[2])
    connections.give_up_idle()
    assert theirs[2].recv(1) == b""
    assert not connections.wait_until_none(0)
    connections.drop(ours[1])
    assert connections.wait_until_none(0)


def test_those_that_give_way_are_closed_before_many_more_come(pairs):
    """Each is closed by its thread, which here waits for the last to be taken."""
    ours, _ = pairs(70)
    connections = Connections(1)
    taken = []

    def take_all() -> None:
        for connection in ours:
            taken.append(connections.take(connection))

    thread = threading.Thread(target=take_all)
    thread.start()
    thread.join(0.2)
    assert len(taken) < 70
    for connection in ours[:40]:
        connections.drop(connection)
    thread.join(60)
    assert taken == [True] * 70


def test_a_deadline_is_for_all_that_comes(pairs):
    ours, theirs = pairs(1)
    deadline = Deadline(0.05)
    theirs[0].send(b"x")
    assert deadline.receive(ours[0]) == b"x"
    with pytest.raises(TimeoutError):
        while True:
            theirs[0].send(b"x")
            deadline.receive(ours[0])
    assert deadline.left == 0


def test_limits_are_numbers_that_make_sense():
    for name, wrong in (("connections", 0), ("body", -1), ("grace_seconds", -1)):
        with pytest.raises(ValueError, match="must be"):
            Limits(**{name: wrong})
