"""The generation thread of a server on several ranks: rank 0 decides, all generate.

Which requests come and leave, what guides from here on and when it all ends is shared
between two steps. Knows mlx-lm's generation thread and the ranks; nothing of HTTP.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from queue import Queue
from typing import Any

from mlx_lm import server

from ..method.predictor import Predictor
from ..ranks import Team, the_team
from .errors import RequestError
from .generation import BudgetResponseGenerator, MakeLearner
from .seams import replaced
from .steering import SteeredRequest


@dataclass(frozen=True)
class _Turn:
    """What rank 0 has decided for the next step.

    Attributes:
        request: A new request and its arguments.
        leaving: Rows of the batch whose clients have left.
        predictor: What guides from here on, if something else does.
        is_last: Whether the server ends.
    """

    request: tuple | None = None
    leaving: tuple[int, ...] = ()
    predictor: Predictor | None = None
    is_last: bool = False


class RankedResponseGenerator(BudgetResponseGenerator):
    """The thread of one rank.

    Unlike that of a server alone it does not outlive a failure: the ranks would not be
    in step.
    """

    def __init__(self, *args: Any, make_learner: MakeLearner | None = None):
        if make_learner is not None:
            # Its steps, between those of the batch, did not come out the same.
            raise ValueError(
                "A server on several Macs does not learn in idle time: leave out "
                "--learn, and run `mlx-budget learn`."
            )
        self._team: Team = the_team()
        super().__init__(*args)

    def _generate(self) -> None:
        # mlx-lm's own sharing goes over MLX's collectives, which would wait for ever.
        self._is_distributed = False
        # How long a batch goes on between two turns is no matter of each rank's clock.
        self._time_budget: Any = (None,)
        try:
            self._generate_once()
        except Exception as e:
            self._end_all(RequestError(f"Generation failed: {e}", status=500))
            self._team.report(e)
            return
        if self._team.leads:
            self._team.share(_Turn(is_last=True), "a turn")

    def _next_request(self, timeout: float | None = None) -> tuple | None:
        found = None
        if self._team.leads:
            found = self._still_wanted(super()._next_request(timeout))
        provider = self.model_provider
        predictor, provider.pending = provider.pending, None
        turn = self._take(
            _Turn(found[1:] if found else None, predictor=copy.deepcopy(predictor))
        )
        if turn.predictor is not None:
            provider.predictor = turn.predictor
        if turn.request is None:
            return None
        return (_Client(self._team, found[0] if found else None), *turn.request)

    def _share_object(self, leaving: list[int]) -> list[int]:
        return list(self._take(_Turn(leaving=tuple(leaving))).leaving)

    def _take(self, turn: _Turn) -> _Turn:
        turn = self._team.share(turn, "a turn")
        self._stop |= turn.is_last
        return turn

    def _still_wanted(self, request: tuple | None) -> tuple | None:
        """A request, unless its client has left: which rank 0 alone can see."""
        if request is None or super()._has_client(request[1]):
            return request
        request[0].put(RequestError("The client has hung up."))
        return None

    def _has_client(self, request: SteeredRequest) -> bool:
        return True

    def _serve_single(self, request: tuple, stream: Any) -> None:
        client, asked, args = request
        stream_generate = partial(self._stream, client, server.stream_generate)
        with replaced("stream_generate", stream_generate):
            super()._serve_single((client, asked, args), stream)

    def _stream(
        self, client: "_Client", stream_generate: Any, *args: Any, **kwargs: Any
    ) -> Iterator[Any]:
        """mlx-lm's responses, until rank 0 knows that the client has left."""
        for response in stream_generate(*args, **kwargs):
            yield response
            if self._team.share(client.has_left, "whether the client has left"):
                return


class _Client:
    """Where a rank puts what comes of a request: on rank 0 the request's own queue.

    A request that is refused has to be refused by all ranks.
    """

    def __init__(self, team: Team, queue: Queue | None):
        self._team = team
        self._queue = queue
        self._context: server.GenerationContext | None = None

    @property
    def has_left(self) -> bool:
        """Whether nobody waits for the reply any more."""
        return self._context is not None and self._context._should_stop

    def put(self, item: Any) -> None:
        """Takes a piece of the reply, or what has become of it."""
        if isinstance(item, Exception) and not self._team.has_told:
            self._team.share(type(item).__name__, "that a request is refused")
        if self._queue is None:
            return
        if isinstance(item, server.GenerationContext):
            self._context = item
        self._queue.put(item)
