"""How the processes that `mlx.launch` has started find one another, and become ranks.

Knows what the launcher tells them and which versions have to be the same; nothing of
models.
"""

import json
import os
import secrets
import signal
import socket
import sys
from importlib.metadata import version
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from typing import Any

from .mirror import follow, obey
from .team import RanksError, Team, current, set_current

# What tells a process that others were started with it: mlx.launch, and MPI's own.
_RANK_VARIABLES = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_PACKAGES = ("mlx-budget", "mlx", "mlx-lm")
_SECONDS_TO_MEET = 60.0
# Of the address, as it is shared.
_MOST_BYTES = 512


def is_launched() -> bool:
    """Whether this process is one of several, as far as can be told without MLX."""
    return any(name in os.environ for name in _RANK_VARIABLES)


def join(is_led: bool) -> Team | None:
    """Makes this process a rank, with those that were started with it.

    Args:
        is_led (bool): As of `Team`.

    Returns:
        Team, optional: None where it is alone.

    Raises:
        ValueError: On rank 0, in one line, if the ranks do not fit together.
        RanksError: On the others then.
    """
    if (team := current()) is not None:
        return team
    import mlx.core as mx

    group = mx.distributed.init()
    if group.size() == 1:
        return None
    team = Team(group.rank(), group.size(), is_led, obey)
    facts = {name: _version(name) for name in _PACKAGES}
    words = sys.argv[1:] if is_led else []
    if team.leads:
        _meet_others(team, group)
    else:
        _go_to_leader(team, group)
    set_current(team)
    verdicts = team.gather((facts, words), "versions and options")
    for rank, (theirs, said) in enumerate(verdicts):
        if different := difference(theirs, facts, said, words):
            if team.leads:
                team.leave()
                raise ValueError(f"Rank {rank} {different}")
            raise RanksError(f"Rank {rank} {different}")
    return team


def become_rank() -> None:
    """Makes this process a rank; one that is led does not come back from here.

    Raises:
        ValueError: On rank 0, as `join`.
    """
    try:
        team = join(is_led=True)
    except RanksError:
        os._exit(1)
    if team is not None and not team.leads:
        follow_to_the_end(team)


def follow_to_the_end(team: Team) -> None:
    """What a rank that is led does, until it ends this process."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # Ctrl-C reaches every process of a terminal: what it means, rank 0 knows.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Rank 0 alone speaks.
    sys.stdout = sys.stderr = open(os.devnull, "w")
    code = 0
    try:
        follow(team)
    except RanksError:
        code = 0 if team.is_over else 1
    except Exception as e:
        team.report(e)
        code = 1
    os._exit(code)


def _meet_others(team: Team, group: Any) -> None:
    secret = secrets.token_bytes(32)
    host = _address_of_leader()
    with Listener((host, 0), backlog=team.size, authkey=secret) as listener:
        address = {"host": host, "port": listener.address[1], "secret": secret.hex()}
        _spread(group, json.dumps(address).encode())
        # The listener has no time limit of its own.
        listener._listener._socket.settimeout(_SECONDS_TO_MEET)  # type: ignore
        met: dict[int, list[Any]] = {}
        while sum(map(len, met.values())) < 2 * (team.size - 1):
            try:
                connection = listener.accept()
                rank, host = connection.recv()
            except (AuthenticationError, EOFError, ConnectionError):
                continue  # a stranger
            except TimeoutError:
                raise ValueError(
                    f"Only {len(met) + 1} of {team.size} ranks have come within "
                    f"{_SECONDS_TO_MEET:.0f} seconds: see what the others say."
                ) from None
            met.setdefault(rank, []).append(connection)
            if len(met[rank]) == 2:
                team.connect(rank, host, *met[rank])


def _go_to_leader(team: Team, group: Any) -> None:
    address = json.loads(_spread(group, b""))
    place, secret = (address["host"], address["port"]), bytes.fromhex(address["secret"])
    connections = []
    for _ in range(2):
        connections.append(Client(place, authkey=secret))
        connections[-1].send((team.rank, socket.gethostname()))
    team.connect(0, address["host"], *connections)


def _address_of_leader() -> str:
    """Where the other ranks reach rank 0, as the launcher has told it."""
    if file := os.environ.get("MLX_HOSTFILE"):
        with open(file, encoding="utf-8") as f:
            return str(json.load(f)[0][0]).rpartition(":")[0]
    if address := os.environ.get("MLX_JACCL_COORDINATOR"):
        return address.rpartition(":")[0]
    return socket.gethostname()


def _spread(group: Any, data: bytes) -> bytes:
    """Rank 0's bytes, on every rank, by MLX's own collective."""
    import mlx.core as mx

    padded = list(data.ljust(_MOST_BYTES, b"\0"))
    summed = mx.distributed.all_sum(
        mx.array(padded, mx.uint8), group=group, stream=mx.cpu
    )
    return bytes(summed.tolist()).rstrip(b"\0")  # type: ignore[arg-type]


def _version(package: str) -> str:
    try:
        return version(package)
    except Exception:  # a checkout that was not installed
        return "unknown"


def difference(
    theirs: dict[str, str], ours: dict[str, str], said: list[str], words: list[str]
) -> str | None:
    """How a rank differs from this one, in words; None if it does not."""
    for package, found in theirs.items():
        if found != ours[package]:
            return (
                f"has {package} {found}, and rank 0 has {ours[package]}: install the "
                "same version on every Mac."
            )
    if said != words:
        return (
            f"was started with other options: {' '.join(said) or 'none'}, in place of "
            f"{' '.join(words)}. Start all by one mlx.launch."
        )
    return None
