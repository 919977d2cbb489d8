"""Functions that every rank calls when rank 0 does.

Rank 0 sends the name of the function and its arguments; of a generator it also tells
each step, so that all stop where its caller stops. The others drop what comes of it.
Where all ranks run the same program they make the call by themselves, and it has to be
the same one. Knows functions and messages; nothing of what they do.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from queue import Empty
from typing import Any, TypeVar

from .team import (
    GRACE_SECONDS,
    Call,
    End,
    Message,
    Next,
    Over,
    RanksError,
    Team,
    current,
)

F = TypeVar("F", bound=Callable[..., Any])
_PLAIN = (bool, int, float, str, type(None))
_functions: dict[str, "_Mirrored"] = {}


def mirrored(
    own: Iterable[str] = (), **stand_ins: Callable[[], Any]
) -> Callable[[F], F]:
    """Makes a function, or a generator, one that every rank calls when rank 0 does.

    Args:
        own (Iterable): Names of arguments of which each rank needs one of its own: they
            can be used where all ranks run the same program.
        stand_ins (Callable): For arguments that concern rank 0 alone, and are not sent:
            what gives the other ranks something in their place.
    """

    def decorate(function: F) -> F:
        mirrored = _Mirrored(function, frozenset(own), stand_ins)
        _functions[mirrored.name] = mirrored
        # The decorated function does not become another one for type checkers.
        return functools.wraps(function)(mirrored.make_call())  # type: ignore

    return decorate


class _BrokenOff(Exception):
    """Rank 0 has left a call in the middle of a step."""


class _Mirrored:
    def __init__(
        self,
        function: Callable,
        own: frozenset[str],
        stand_ins: Mapping[str, Callable[[], Any]],
    ):
        self.function = function
        self.name = f"{function.__module__}:{function.__qualname__}"
        self._own = own
        self._stand_ins = stand_ins
        self._signature = inspect.signature(function)
        self.is_generator = inspect.isgeneratorfunction(function)

    def make_call(self) -> Callable:
        """What is called in place of the function."""

        def call(*args: Any, **kwargs: Any) -> Any:
            team = current()
            if team is None or team.is_inside:
                return self.function(*args, **kwargs)
            run = _lead if team.leads else _accompany
            return run(team, self, args, kwargs)

        def steps(*args: Any, **kwargs: Any) -> Generator:
            team = current()
            if team is None or team.is_inside:
                return (yield from self.function(*args, **kwargs))
            run = _lead_steps if team.leads else _accompany_steps
            return (yield from run(team, self, args, kwargs))

        return steps if self.is_generator else call

    def pack(self, team: Team, args: tuple, kwargs: dict) -> dict[str, bytes | None]:
        """The arguments as they are sent; None for one that cannot be.

        Raises:
            ValueError: Naming it, where the other ranks have none of their own.
        """
        packed: dict[str, bytes | None] = {}
        for name, value in self._named(args, kwargs).items():
            if name in self._stand_ins:
                continue
            packed[name] = self._packed(team, name, value)
            if packed[name] is None and team.is_led:
                raise ValueError(
                    f"{name} cannot be used on several Macs: rank 0 cannot send it to "
                    "the others."
                )
        return packed

    def _packed(self, team: Team, name: str, value: Any) -> bytes | None:
        if name in self._own and value is not None:
            return None
        try:
            return team.parcels.pack(value)
        except Exception:  # whatever a value that cannot be sent raises
            return None

    def unpack(self, team: Team, packed: Mapping[str, bytes | None]) -> dict[str, Any]:
        """The arguments on another rank."""
        sent = {k: team.parcels.unpack(v) for k, v in packed.items() if v is not None}
        return sent | {name: make() for name, make in self._stand_ins.items()}

    def check(self, team: Team, call: Call, args: tuple, kwargs: dict) -> None:
        """Checks that rank 0 has made the same call as this rank."""
        if call.name != self.name:
            ours, theirs = (name.rpartition(":")[2] for name in (self.name, call.name))
            raise team.fail(f"rank {team.rank} is at {ours}, rank 0 at {theirs}")
        for name, value in self._named(args, kwargs).items():
            data = call.arguments.get(name)
            is_twin = getattr(type(value), "is_on_every_rank", False)
            if data is None or not (is_twin or isinstance(value, _PLAIN)):
                continue
            theirs = team.parcels.unpack(data, own=value)
            if not is_twin and theirs != value:
                raise team.fail(
                    f"{name} is {value!r} on rank {team.rank} and {theirs!r} on rank 0"
                )

    def _named(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        named = dict(self._signature.bind(*args, **kwargs).arguments)
        for parameter in self._signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named.update(named.pop(parameter.name, {}))
        return named


@dataclass
class _Open:
    """A call of rank 0 that this rank is at.

    Attributes:
        steps: Of a generator.
        has_ended: Whether there are no more of them.
    """

    steps: Generator | None = None
    has_ended: bool = False


# Rank 0's side.


def _lead(team: Team, mirrored: _Mirrored, args: tuple, kwargs: dict) -> Any:
    number = team.begin(mirrored.name, mirrored.pack(team, args, kwargs))
    error: BaseException | None = None
    try:
        with team.inside():
            result = mirrored.function(*args, **kwargs)
            _settle()
            return result
    except BaseException as e:
        error = e
        raise
    finally:
        team.tell(End(number, _kind(error)))


def _lead_steps(
    team: Team, mirrored: _Mirrored, args: tuple, kwargs: dict
) -> Generator:
    number = team.begin(mirrored.name, mirrored.pack(team, args, kwargs))
    steps = mirrored.function(*args, **kwargs)
    error: BaseException | None = None
    try:
        while True:
            team.check()
            team.tell(Next(number))
            with team.inside():
                try:
                    item = next(steps)
                except StopIteration as e:
                    return e.value
            yield item
    except BaseException as e:
        error = e
        raise
    finally:
        _close(team, steps, error)
        team.tell(End(number, _kind(error)))


# The others', where they do what rank 0 tells them.


def follow(team: Team) -> None:
    """Makes the calls that rank 0 makes, until that ends.

    Raises:
        RanksError: If the ranks cannot go on together.
    """
    while not isinstance(message := team.hear(), Over):
        obey(team, message)


def obey(team: Team, message: Message) -> None:
    """Does what rank 0 says of a call.

    Raises:
        RanksError: If the ranks cannot go on together.
    """
    if isinstance(message, Over):
        raise RanksError("Rank 0 has come to its end.")
    if isinstance(message, Call):
        _begin(team, message)
        return
    number = getattr(message, "number", None)
    if not isinstance(message, Next | End) or number not in team.open:
        raise team.fail(f"rank {team.rank} was not told what to do with {message}")
    here = team.open[number]
    if isinstance(message, End):
        if here is None:
            raise _BrokenOff
        del team.open[number]
        _close(team, here.steps)
        return
    if here.has_ended or here.steps is None:
        raise team.fail(f"rank {team.rank} has come to an end before rank 0")

    def step() -> None:
        try:
            next(here.steps)
        except StopIteration:
            here.has_ended = True

    _do(team, message.number, step, here)


def _begin(team: Team, call: Call) -> None:
    for name in call.gone:
        team.parcels.drop(name)
    if call.name not in _functions:
        importlib.import_module(call.name.partition(":")[0])
    mirrored = _functions[call.name]
    here = _Open()

    def run() -> None:
        arguments = mirrored.unpack(team, call.arguments)
        made = mirrored.function(**arguments)
        if mirrored.is_generator:
            here.steps = made

    _do(team, call.number, run, here)


def _do(team: Team, number: int, run: Callable[[], None], here: _Open) -> None:
    """Runs a part of a call; an error has to be rank 0's as well."""
    team.open[number] = None
    try:
        with team.inside():
            run()
    except _BrokenOff:
        del team.open[number]
        return
    except RanksError:
        raise
    except Exception as e:
        if not _ends_so(team, number, e):
            raise team.report(e) from e
        del team.open[number]
        return
    team.open[number] = here


def _ends_so(team: Team, number: int, error: Exception) -> bool:
    """Whether the call ends with this error on rank 0 too."""
    try:
        message = team.hear(GRACE_SECONDS)
    except Empty:
        return False
    return message == End(number, _kind(error))


# And where they run the same program.


def _accompany(team: Team, mirrored: _Mirrored, args: tuple, kwargs: dict) -> Any:
    number = _expect_call(team, mirrored, args, kwargs)
    try:
        with team.inside():
            result = mirrored.function(*args, **kwargs)
            _settle()
    except RanksError:
        raise
    except Exception as e:
        if not _ends_so(team, number, e):
            raise team.report(e) from e
        raise
    _expect(team, End(number, None))
    return result


def _accompany_steps(
    team: Team, mirrored: _Mirrored, args: tuple, kwargs: dict
) -> Generator:
    number = _expect_call(team, mirrored, args, kwargs)
    steps = mirrored.function(*args, **kwargs)
    try:
        while True:
            _expect(team, Next(number))
            with team.inside():
                try:
                    item = next(steps)
                except StopIteration as e:
                    _expect(team, End(number, None))
                    return e.value
            yield item
    except RanksError:
        raise
    except GeneratorExit:
        _expect(team, End(number, None))
        raise
    except Exception as e:
        if not _ends_so(team, number, e):
            raise team.report(e) from e
        raise
    finally:
        _close(team, steps)


def _expect_call(team: Team, mirrored: _Mirrored, args: tuple, kwargs: dict) -> int:
    while not isinstance(message := team.hear(), Call) or team.open:
        obey(team, message)
    mirrored.check(team, message, args, kwargs)
    return message.number


def _expect(team: Team, wanted: Message) -> None:
    message = team.hear()
    if message != wanted:
        raise team.fail(f"rank {team.rank} expects {wanted} of rank 0, not {message}")


def _kind(error: BaseException | None) -> str | None:
    """What tells an error from others; that a generator is closed is none."""
    if error is None or isinstance(error, GeneratorExit):
        return None
    return type(error).__name__


def _close(
    team: Team, steps: Generator | None, error: BaseException | None = None
) -> None:
    if steps is None:
        return
    with team.inside():
        steps.close()
        if error is None or isinstance(error, GeneratorExit):
            _settle()


def _settle() -> None:
    """Waits for steps that are under way.

    Collectives of two streams must not meet: a generator leaves behind a step that
    nobody reads, and the next call may run on another stream.
    """
    import mlx.core as mx
    from mlx_lm.generate import generation_stream

    mx.synchronize(generation_stream)
    mx.synchronize()
