"""Progress bars on stderr. Knows how far a run is; nothing of what it does."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


class ProgressBars:
    """One bar after another, each from the moment there is something to show."""

    def __init__(self) -> None:
        self._label: str | None = None
        self._details: str | None = None
        self._bar: Any = None

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the bar as it is, and the line behind it."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = self._label = None

    def show(
        self,
        label: str,
        done: int,
        total: int | None,
        details: str | None = None,
        shows_eta: bool = True,
    ) -> None:
        """Shows how far a run is; another label begins another bar.

        Args:
            label (str): What is done.
            done (int): How much of it.
            total (int, optional): Of how much, if that is known.
            details (str, optional): Put behind the bar.
            shows_eta (bool): Whether click may say how long it takes, by ``done``.
        """
        self._details = details
        if label != self._label:
            self.close()
            self._label = label
            # Where the total is not known the bar moves with each step.
            self._bar = click.progressbar(
                length=total or 0,
                label=label,
                file=sys.stderr,
                show_eta=shows_eta and total is not None,
                show_percent=total is not None,
                show_pos=True,
                item_show_func=lambda _: self._details,
            )
            self._bar.__enter__()
        self._bar.update(done - self._bar.pos, details)


@contextmanager
def bars_until_stopped(
    how_to_go_on: Callable[[], str],
) -> Iterator[ProgressBars]:
    """Progress bars of a run; Ctrl-C ends it with a line that says how it goes on."""
    with ProgressBars() as bars:
        try:
            yield bars
        except KeyboardInterrupt:
            bars.close()
            click.echo(how_to_go_on(), err=True)
            # Exit code 130 too, without the empty line that click adds.
            raise click.Abort from None
