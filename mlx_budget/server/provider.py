"""The models of the server, each with its predictor or what guides in its stead.

Knows mlx-lm's loader on demand and folders; nothing of requests.
"""

import argparse
import gc
import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any

from mlx_lm import server
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .. import demo
from ..engine.caches import check_quantisable
from ..engine.follower import ReplyFollower
from ..engine.memory import size_note
from ..engine.priors import LearnedPrior, notice
from ..engine.sampler import check_enforceable
from ..engine.settings import ModelSource, ThinkingBudget
from ..engine.thinking import ThinkingMarkers, find_markers, markers_of
from ..method.predictor import Predictor
from ..models.fetching import Ahead, check_adapter, fetch, find_model
from ..models.loading import check_fits, name_on_all_ranks, unpack_demo
from ..models.published import fitting_source
from ..models.splitting import load_part, own_shards
from ..ranks import Team, current, share
from .budgets import BudgetPolicy
from .seams import replaced

# What no prompt and no reply has, for mlx-lm to look for.
_NO_TEXT, _NO_TOKENS = "\0", (-1,)


class BudgetModelProvider(server.ModelProvider):
    """Loads models on demand, each with its predictor.

    Args:
        cli_args (argparse.Namespace): As `mlx_lm.server` has them, and `predictor`:
            folder or Hub name of the predictor of the default model, None for the one
            beside it, or False for none whatever the model. `thinking_start` and
            `thinking_end` are markers of the default model, None for the tokenizer's.
        policy (BudgetPolicy): What the default model must be able to honour.

    Attributes:
        predictor: Of the model that is loaded; None or False as `mlx_budget.load`.
        named_markers: The opening and the closing marker that were given for it, each
            None for the tokenizer's own.
        vocabulary_size: Of its tokenizer.
        pending: On several ranks, what is to guide them from the next turn on.
    """

    # mlx-lm's class says nothing of these but that they begin as None.
    model: Any
    tokenizer: Any
    model_key: Any

    def __init__(self, cli_args: argparse.Namespace, policy: BudgetPolicy):
        super().__init__(cli_args)
        self.predictor: Predictor | bool | None = None
        self.named_markers: tuple[str | None, str | None] = None, None
        self.vocabulary_size = 0
        self.pending: Predictor | None = None
        self._policy = policy
        self._failure: Exception | None = None
        self._learned: LearnedPrior | None = None
        self._is_tried = threading.Event()
        self._is_busy = False

    @property
    def is_loading(self) -> bool:
        """Whether a model is being loaded, or the default one still has to be."""
        return self._is_busy or not self._is_tried.is_set()

    @property
    def loop_options(self) -> dict[str, Any]:
        """Options of mlx-lm's loop."""
        return {**vars(self.cli_args), "draft_model": self.draft_model}

    def load_default(self) -> None:
        """Loads the default model; a failure is kept for `wait_until_loaded`."""
        try:
            super().load_default()
            self._check_honoured(self.tokenizer, self.predictor, *self.named_markers)
        except Exception as e:  # whatever a model's files make its loader raise
            self._failure = e
        finally:
            self._is_tried.set()

    def _check_default(self, ahead: Ahead) -> None:
        asked = self.cli_args.thinking_start, self.cli_args.thinking_end
        self._check_honoured(ahead.tokenizer, ahead.predictor, *asked)
        if self.cli_args.kv_bits is not None:
            check_quantisable(ahead.make_model(), self.loop_options, tokens=0)

    def _check_honoured(
        self,
        tokenizer: TokenizerWrapper,
        predictor: Predictor | bool | None,
        start: str | None,
        end: str | None,
    ) -> None:
        """Raises a ValueError if the default model could not do what it is to do."""
        thinking = self._policy.thinking.at_most(self._policy.most)
        if not thinking.is_steered:
            return
        if self.cli_args.draft_model is not None:
            raise ValueError(
                "Speculative decoding (--draft-model) cannot be combined with a "
                "thinking budget, nor with --stop-loops: leave out one of them."
            )
        find_markers(tokenizer, start, end)
        check_enforceable(thinking, predictor)

    def wait_until_loaded(self) -> None:
        """Waits for the default model.

        Raises:
            ValueError: Or what else loading it raised.
        """
        self._is_tried.wait()
        if self._failure is not None:
            raise self._failure

    def _load(
        self,
        model_path: str,
        adapter_path: str | None = None,
        draft_model_path: str | None = None,
    ) -> None:
        self._is_busy = True
        try:
            self._load_all(model_path, adapter_path, draft_model_path)
        finally:
            self._is_busy = False

    def _load_all(
        self, model_path: str, adapter_path: str | None, draft_model_path: str | None
    ) -> None:
        is_default = model_path == self.cli_args.model
        given = self.cli_args.predictor
        trust = self.cli_args.trust_remote_code
        team = current()
        if is_default:
            check_adapter(self.cli_args.adapter_path)
        if draft_model_path is not None:
            find_model(draft_model_path, trust_remote_code=trust)
        folder, predictor = fetch(
            model_path,
            given if is_default or given is False else None,
            trust_remote_code=trust,
            check=self._check_default if is_default else lambda _: None,
            choose=None if team is None else partial(own_shards, self._is_pipeline),
        )
        if team is None:
            super()._load(str(folder), adapter_path, draft_model_path)
        else:
            mine = partial(self._load_part, team, model_path, folder)
            with replaced("sharded_load", mine):
                super()._load(str(folder), adapter_path, draft_model_path)
        # Known by its name again only when all of it is there.
        self.model_key = None
        check_quantisable(self.model, self.loop_options, tokens=0)
        if folder == demo.FOLDER and team is None:
            self.model = unpack_demo(self.model)
        self.named_markers = None, None
        if model_path == self.cli_args.model:
            self.named_markers = (
                self.cli_args.thinking_start,
                self.cli_args.thinking_end,
            )
        if self.named_markers != (None, None):
            markers = find_markers(self.tokenizer, *self.named_markers)
            _show_markers(self.tokenizer, markers)
        self._learned = None
        self.predictor = self._take_predictor(model_path, adapter_path, predictor)
        if (note := size_note(self.model, self.predictor)) is not None:
            logging.warning("%s", note)
        vocabulary = self.tokenizer.get_vocab()
        self.vocabulary_size = len(vocabulary)
        self.model_key = (model_path, adapter_path, draft_model_path)
        if current() is not None:
            name_on_all_ranks(self.model, self.tokenizer, self.predictor)
        # A recorder's classes and what they refer to are garbage in cycles.
        gc.collect()

    @property
    def _is_pipeline(self) -> bool:
        return self.cli_args.pipeline

    def _load_part(
        self, team: Team, name: str, folder: Path, *_: Any, **options: Any
    ) -> tuple:
        """In place of mlx-lm's `sharded_load`."""
        return load_part(
            team,
            name,
            folder,
            pipeline=self._is_pipeline,
            tokenizer_config=options.get("tokenizer_config"),
            trust_remote_code=self.cli_args.trust_remote_code,
        )

    def _guide_by(self, predictor: Predictor | None) -> None:
        if current() is None:
            self.predictor = predictor
        else:
            self.pending = predictor

    def _named_thinking(self) -> ThinkingBudget:
        start, end = self.named_markers
        return ThinkingBudget(start=start, end=end)

    def _take_predictor(
        self,
        name: str,
        adapter_path: str | None,
        predictor: Predictor | bool | None,
    ) -> Predictor | bool | None:
        if isinstance(predictor, Predictor):
            check_fits(predictor, self.model)
        if predictor is not None:
            return predictor
        markers = markers_of(self.tokenizer, self._named_thinking())
        if markers is not None:
            source = ModelSource(name, adapter_path=adapter_path)
            found = fitting_source(source)
            logging.info("%s", notice(found.name if found is not None else None))
        if markers is not None and self.cli_args.learn_prior:
            self._learned = LearnedPrior(name, self.tokenizer, markers)
            # Each rank may have learnt otherwise.
            predictor = share(self._learned.predictor(), "what was learnt")
        return predictor

    @property
    def is_default(self) -> bool:
        """Whether the model that is loaded is the one that is served by default."""
        key = self.model_key
        own = self.cli_args.model, self.cli_args.adapter_path
        return key is not None and key[:2] == own

    def take_table(self, table: Predictor) -> None:
        """Guides by a table from here on, where a prior would guide."""
        given = self.predictor
        is_light = isinstance(given, Predictor) and not given.reads_states
        if given is None or is_light:
            self._guide_by(table)
            self._learned = None
            logging.info("A table of the model's own replies guides from here on.")

    def learn(self, reply: ReplyFollower) -> None:
        """Lets the prior learn from a reply that has ended, if it is to learn."""
        learned = self._learned
        if learned is not None and learned.learn(reply):
            self._guide_by(learned.predictor())


def _show_markers(tokenizer: TokenizerWrapper, markers: ThinkingMarkers) -> None:
    """Lets mlx-lm split replies at markers that are not the tokenizer's own."""
    tokenizer._think_start = markers.start or _NO_TEXT
    tokenizer._think_start_tokens = markers.start_tokens or _NO_TOKENS
    tokenizer._think_end = markers.end
    tokenizer._think_end_tokens = markers.end_tokens
