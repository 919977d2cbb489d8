"""The ranks as a team: what rank 0 tells the others, and what ends all of them.

Knows messages, calls and failures; nothing of models. Which functions are called is in
`mirror`, how the ranks find one another in `joining`.
"""

import _thread
import math
import os
import pickle
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Any, TypeVar

from .parcels import Parcels
from .wire import Wire

T = TypeVar("T")
# A rank may be stuck in a collective that will never end: a process that has not come
# to its end by itself is ended.
GRACE_SECONDS = 3.0
EXIT_CODE = 2


class RanksError(ValueError):
    """The ranks cannot go on together."""


@dataclass(frozen=True)
class Call:
    """A call of a mirrored function begins.

    Attributes:
        number: Of the call.
        name: Of the function.
        arguments: By their names, packed; None for those that cannot be sent.
        gone: Names that are to be let go of.
    """

    number: int
    name: str
    arguments: dict[str, bytes | None]
    gone: tuple[str, ...] = ()


@dataclass(frozen=True)
class Next:
    """The generator of a call is to go on to its next item."""

    number: int


@dataclass(frozen=True)
class End:
    """A call is over, with an error of this class or without one."""

    number: int
    error: str | None


@dataclass(frozen=True)
class Shared:
    """What rank 0 has decided."""

    what: str
    value: bytes


@dataclass(frozen=True)
class Answer:
    """What another rank says when it is asked."""

    what: str
    value: Any


@dataclass(frozen=True)
class Chosen:
    """A token, by its number, as a rank chose it."""

    number: int
    token: int


@dataclass(frozen=True)
class Failure:
    """Why all ranks have to end."""

    text: str


@dataclass(frozen=True)
class Over:
    """Rank 0 has come to its end; so may the others."""


Message = Call | Next | End | Shared | Answer | Chosen | Failure | Over


class Team:
    """This process as one of several ranks.

    Args:
        rank (int): Its number; 0 leads.
        size (int): How many there are.
        is_led (bool): Whether the others do nothing but what rank 0 tells them. If
            not, all of them run the same program, as scripts under `mlx.launch` do.
        obey (Callable): Does what rank 0 says of a call, on the others.

    Attributes:
        parcels: What can be sent between them.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        is_led: bool,
        obey: "Callable[[Team, Message], None]",
    ):
        self.rank, self.size, self.is_led = rank, size, is_led
        self._obey = obey
        self.parcels = Parcels()
        self._wires: dict[int, Wire] = {}
        self._hosts: dict[int, str] = {}
        self._hearing = threading.Lock()
        # That have come while tokens were compared.
        self._answers: dict[int, Queue[Answer]] = defaultdict(Queue)
        self._inside = threading.local()
        self._calls = self._named = 0
        self._failing = threading.Lock()
        self._failure: str | None = None
        self._has_failed = threading.Event()
        self._is_over = False
        self._is_broken = False
        self._depth = 0
        self._tokens = _Tokens(size)
        # Calls of rank 0 that this rank is at, by their numbers.
        self.open: dict[int, Any] = {}

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def connect(self, rank: int, host: str, talk: Any, watch: Any) -> None:
        """Takes the connections to another rank."""
        self._hosts[rank] = host
        self._wires[rank] = Wire(
            talk,
            watch,
            lambda data: self._take(pickle.loads(data)),
            lambda why: self._lose(rank, why),
            self._compare_tokens if self.leads else lambda: None,
        )

    def name(self, value: Any) -> None:
        """Lets calls name an object that every rank has made at this place."""
        self._named += 1
        name = f"{type(value).__name__} made {self._named}"
        self.parcels.name(name, value, keep=self.is_led and not self.leads)

    # What rank 0 says and the others hear.

    def tell(self, message: Message) -> None:
        """Sends a message: rank 0 to all others, these to rank 0."""
        data = pickle.dumps(message)
        for wire in self._wires.values():
            if isinstance(message, Failure | Over):
                wire.cry(data)
            else:
                wire.say(data)

    def hear(self, seconds: float = math.inf) -> Message:
        """The next message of rank 0.

        Raises:
            RanksError: If the ranks cannot go on.
            queue.Empty: If none comes within so many seconds.
        """
        end = time.monotonic() + seconds
        while True:
            self.check()
            if (data := self._wires[0].hear(0.2)) is not None:
                return pickle.loads(data)
            if self._is_over:
                return Over()
            if time.monotonic() > end:
                raise Empty

    def check(self) -> None:
        """Raises a RanksError if the ranks cannot go on."""
        if self._failure is not None:
            raise RanksError(self._failure)

    def begin(self, name: str, arguments: dict[str, bytes | None]) -> int:
        """Tells of a call; returns its number."""
        self.check()
        if self._is_broken:
            raise RanksError(
                "A step was broken off on rank 0, so the ranks are no longer in step: "
                "start again."
            )
        self._calls += 1
        gone, self.parcels.gone = tuple(self.parcels.gone), []
        self.tell(Call(self._calls, name, arguments, gone))
        return self._calls

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The part of a call that every rank runs: calls within are not told of."""
        self._inside.calls = getattr(self._inside, "calls", 0) + 1
        self._depth += 1
        try:
            yield
        except KeyboardInterrupt:
            self._is_broken = True
            raise
        except RuntimeError as e:
            # MLX says that a connection was lost; the wire says whose.
            if self._has_failed.wait(2.0):
                raise RanksError(self._failure) from e
            raise
        finally:
            self._inside.calls -= 1
            self._depth -= 1

    @property
    def is_inside(self) -> bool:
        """Whether this thread runs such a part."""
        return getattr(self._inside, "calls", 0) > 0

    def share(self, value: Any, what: str) -> Any:
        """Rank 0's value, on every rank.

        Args:
            value: Rank 0's; the others' is of no account.
            what (str): A word for it, which has to be the same on all.
        """
        if self.leads:
            self.check()
            self.tell(Shared(what, self.parcels.pack(value)))
            return value
        while not isinstance(message := self.hear(), Shared):
            self._obey(self, message)
        if message.what != what:
            raise self.fail(f"one is at {what!r}, rank 0 at {message.what!r}")
        return self.parcels.unpack(message.value)

    def gather(self, value: Any, what: str) -> list[Any]:
        """Every rank's value, in the order of the ranks, on every rank."""
        if not self.leads:
            self.tell(Answer(what, value))
            return self.share(None, what)
        values = [value]
        for rank in range(1, self.size):
            answer = self._answer_of(rank)
            if answer.what != what:
                raise self.fail(
                    f"rank {rank} is at {answer.what!r}, rank 0 at {what!r}"
                )
            values.append(answer.value)
        return self.share(values, what)

    def note_token(self, token: int) -> None:
        """Tells of a token that this rank has chosen; all have to choose the same."""
        number = self._tokens.next_number()
        if self.leads:
            self._differs(self._tokens.note(0, number, token))
            self._compare_tokens()
        else:
            self.tell(Chosen(number, token))
        self.check()

    # What ends them.

    def fail(self, why: str) -> RanksError:
        """Ends all ranks; returns the error to raise here."""
        text = f"The ranks have come apart: {why}."
        if self.leads:
            self._fail(text)
        else:
            self.tell(Failure(text))
            self._has_failed.wait(GRACE_SECONDS)
        return RanksError(self._failure or text)

    def report(self, error: BaseException) -> RanksError:
        """Ends all ranks for an error that this one alone has had."""
        text = f"Rank {self.rank}: {_one_line(error)}"
        if self._failure is None and self.leads:
            self._fail(text)
        elif self._failure is None:
            self.tell(Failure(text))
            self._has_failed.wait(GRACE_SECONDS)
        return RanksError(self._failure or str(error))

    @property
    def is_over(self) -> bool:
        """Whether rank 0 has come to its end."""
        return self._is_over

    @property
    def has_told(self) -> bool:
        """Whether the user has been told why the ranks have ended."""
        return self._failure is not None

    def leave(self) -> None:
        """Rank 0 has come to its end."""
        if self.leads and not self._is_over:
            self._is_over = True
            self.tell(Over())
            for wire in self._wires.values():
                wire.close()

    def _answer_of(self, rank: int) -> Answer:
        while True:
            self.check()
            if (answer := self._heard(rank, 0.2)) is not None:
                return answer

    def _compare_tokens(self) -> None:
        """Looks at the tokens that the others have chosen since."""
        for rank in self._wires:
            if (answer := self._heard(rank, 0)) is not None:
                self._answers[rank].put(answer)

    def _heard(self, rank: int, seconds: float) -> Answer | None:
        """What another rank answers; its tokens on the way are compared."""
        with self._hearing:
            if seconds and not self._answers[rank].empty():
                return self._answers[rank].get()
            while (data := self._wires[rank].hear(seconds)) is not None:
                message = pickle.loads(data)
                if isinstance(message, Answer):
                    return message
                different = self._tokens.note(rank, message.number, message.token)
                self._differs(different)
        return None

    def _take(self, message: Message) -> None:
        if isinstance(message, Failure):
            self._fail(message.text)
        else:
            self._is_over = True
            _end_soon(0)

    def _lose(self, rank: int, why: str) -> None:
        if not self._is_over:
            host = self._hosts[rank]
            self._fail(f"Rank {rank} ({host}) {why}: no rank can go on without it.")

    def _differs(self, different: str | None) -> None:
        if different is not None:
            self._fail(
                f"The ranks have come apart: {different}. Macs of different kinds, or "
                "with different versions of macOS, may round differently."
            )

    def _fail(self, text: str) -> None:
        with self._failing:
            if self._failure is not None:
                return
            self._failure = text
        if self.leads:
            self.tell(Failure(text))
        self._has_failed.set()
        if self.is_led:
            self._say(text)
            if self.leads:
                _thread.interrupt_main()
            _end_soon(EXIT_CODE)
        elif self._depth:
            threading.Timer(GRACE_SECONDS, self._end_if_stuck).start()

    def _say(self, text: str) -> None:
        """Tells the user; past what Python writes, of which this thread knows nothing.

        Of several ranks one does: rank 0, or those that have lost it.
        """
        if self.leads or text.startswith("Rank 0 "):
            os.write(2, f"\nError: {text}\n".encode())

    def _end_if_stuck(self) -> None:
        if self._depth:
            os.write(2, f"\nError: {self._failure}\n".encode())
            os._exit(EXIT_CODE)


class _Tokens:
    """The tokens that the ranks have chosen, until all have said so."""

    def __init__(self, size: int):
        self._size = size
        self._lock = threading.Lock()
        self._count = 0
        self._chosen: dict[int, dict[int, int]] = {}

    def next_number(self) -> int:
        """The number of this rank's next token."""
        self._count += 1
        return self._count

    def note(self, rank: int, number: int, token: int) -> str | None:
        """Takes a rank's token; how it differs from another's, or None."""
        with self._lock:
            chosen = self._chosen.setdefault(number, {})
            chosen[rank] = token
            for other, theirs in chosen.items():
                if theirs != token:
                    return (
                        f"rank {rank} chose token {token} where rank {other} chose "
                        f"{theirs}"
                    )
            if len(chosen) == self._size:
                del self._chosen[number]
        return None


def _end_soon(code: int) -> None:
    """Ends this process if it has not come to its end by itself."""
    timer = threading.Timer(GRACE_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) or repr(error)).split())


_team: Team | None = None


def current() -> Team | None:
    """The team that this process belongs to; None where it is alone."""
    return _team


def the_team() -> Team:
    """The team, where there is one."""
    if _team is None:
        raise RuntimeError("This process is alone.")
    return _team


def set_current(team: Team) -> None:
    """Makes this process a rank of a team, for good."""
    global _team
    _team = team


def leads() -> bool:
    """Whether this process is rank 0 of its team, or alone."""
    return _team is None or _team.leads


def share(value: T, what: str) -> T:
    """Rank 0's value, on every rank; see `Team.share`."""
    return value if _team is None else _team.share(value, what)


def shared(items: Iterable[T], what: str) -> Iterator[T]:
    """Rank 0's items, as they are taken, on every rank."""
    if _team is None:
        yield from items
        return
    rest = iter(items)
    while (item := _team.share(next(rest, _NO_MORE), what)) is not _NO_MORE:
        yield item


class _NoMore:
    """What comes behind the last of some items, the same in each process."""

    def __reduce__(self) -> str:
        return "_NO_MORE"


_NO_MORE: Any = _NoMore()


def note_token(token: int) -> None:
    """Tells of a token that this rank has chosen; see `Team.note_token`."""
    if _team is not None:
        _team.note_token(token)
