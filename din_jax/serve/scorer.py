"""Scores requests of raw values by an exported model."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from din_jax.distributed import cpu
from din_jax.errors import DinError
from din_jax.export import artifact as artifacts
from din_jax.export.encoding import Encoded, Encoder, InvalidRequest
from din_jax.export.padding import pad
from din_jax.serve.ranking import Ranking, ranking
from din_jax.serve.shapes import ladder, levels

Candidates = Mapping[str, Any] | Sequence[Mapping[str, Any]]

_TOLERANCE = 1e-4  # of the probe's logits: platforms round differently


@dataclasses.dataclass(frozen=True)
class Visitor:
    """A user with their behaviours and context, encoded once for several lists of candidates.

    `Scorer.user` makes it, while candidates are still being retrieved.

    Attributes:
      scorer: that scores.
      encoded: see `Encoded`.
    """

    scorer: Scorer
    encoded: Encoded

    def score(self, candidates: Candidates) -> npt.NDArray[np.float64]:
        """Computes the click probabilities of candidates, float64 [C]; see `Scorer.score`."""
        ads = self.scorer.ads(candidates)
        return self.scorer.score_encoded([(self.encoded, ads)])[0].probability

    def rank(
        self, candidates: Candidates, bids: Sequence[float] | None = None, *, alpha: float = 1.0
    ) -> Ranking:
        """Orders candidates by CTR^α · bid (the paper's footnote 4); see `Scorer.rank`."""
        return ranking(self.score(candidates), bids, alpha)

    def explain(self, candidates: Candidates) -> dict[str, npt.NDArray[np.float32]]:
        """Computes the activation weights; see `Scorer.explain`."""
        ads = self.scorer.ads(candidates)
        weights = self.scorer.score_encoded([(self.encoded, ads)])[0].weights
        if not weights:
            name = self.scorer.artifact.manifest["config"]["model"]["name"]
            raise DinError(f"{name} has no activation unit; only din weights behaviours by the ad")
        return weights


class Scored(NamedTuple):
    """The scores of one request's C candidates.

    Attributes:
      logit: float64 [C]; its sigmoid is the click probability.
      weights: {sequence: float32 [C, behaviours]}, the activation weights of the behaviours as they
        were given; 0 for those that are not used. Empty for models without an activation unit.
    """

    logit: npt.NDArray[np.float64]
    weights: dict[str, npt.NDArray[np.float32]]

    @property
    def probability(self) -> npt.NDArray[np.float64]:
        """The click probabilities, float64 [C]."""
        probability: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0, -self.logit))
        return probability


class Scorer:
    """Scores requests by an exported model. Thread-safe.

    A call is padded to one of a few shapes, all of which are compiled when the scorer is made:
    nothing compiles later. More candidates than `max_candidates` are scored in several calls.

    Args:
      model: the folder of the artifact (`din_jax.export`).
      max_candidates: the candidates of one user that are scored in one call.
      max_users: how many requests `score_encoded` merges into one call.
      warm: whether to compile now. Without, a shape is compiled when it is first used.
      verify: whether to compare the files with their checksums, and the scores of the probe.
      like: another scorer, whose compiled programs are used if the models differ in values alone.

    Attributes:
      artifact: the model.
      encoder: of raw values.
      notes: of what is no error but should be known.
      programs: how many programs have been compiled.

    Raises:
      DinError: there is no artifact, it is damaged, or its probe has other scores.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        max_candidates: int = 256,
        max_users: int = 8,
        warm: bool = True,
        verify: bool = True,
        like: Scorer | None = None,
    ):
        if max_candidates < 1 or max_users < 1:
            raise DinError("Scorer: max_candidates and max_users must be 1 or more")
        self.artifact = artifacts.load(model, verify=verify)
        manifest = self.artifact.manifest
        self.encoder = Encoder(
            self.artifact.transform,
            self.artifact.schema,
            manifest["max_history"],
            ages=manifest["ages"],
        )
        function, self.notes = artifacts.scoring_of(self.artifact)
        self._function = jax.jit(function)
        self._weights = jax.device_put(self.artifact.weights, may_alias=True)
        self._lock = threading.Lock()
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}
        if like is not None and _computes_alike(like, self):
            self._compiled, self._lock = like._compiled, like._lock
        longest = self._longest(manifest["longest"])
        ad_fields = {name for name in longest if name in self.encoder.ad_fields}
        self._ads_capacity = {name: longest.pop(name) for name in ad_fields}
        self._behaviors = levels(longest)
        self._candidates = ladder(max_candidates)
        self._users = [2**i for i in range((max_users - 1).bit_length())] + [max_users]
        self.max_candidates = max_candidates
        if warm:
            self._warm()
        if verify:
            self._check_probe()

    @property
    def programs(self) -> int:
        """How many programs have been compiled."""
        return len(self._compiled)

    def user(
        self,
        user: Mapping[str, Any] | None = None,
        behaviors: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        time: int | None = None,
    ) -> Visitor:
        """Encodes a user, for one or more lists of candidates.

        Args:
          user: {field of the user: raw value}. None as a value is unknown.
          behaviors: {sequence: {field: raw values}} or {sequence: [{field: raw value}]}, oldest
            first; "time" has times in seconds. The most recent `max_history` are used.
          context: {field of the context: raw value}.
          time: of the request, in seconds; later behaviours are left out. A model
            that reads ages needs it.

        Raises:
          InvalidRequest: a field is missing, unknown or of another type.
        """
        encoded = self.encoder.user(
            {} if user is None else user,
            {} if behaviors is None else behaviors,
            {} if context is None else context,
            time,
        )
        for axis, length in encoded.size.items():
            if length > self._behaviors_at_most(axis):
                raise InvalidRequest(
                    axis, f"{length:,} values; at most {self._behaviors_at_most(axis):,} are read"
                )
        return Visitor(self, encoded)

    def ads(self, candidates: Candidates) -> Encoded:
        """Encodes candidates.

        Args:
          candidates: see `score`.

        Raises:
          InvalidRequest: see `user`.
        """
        encoded = self.encoder.ads(candidates)
        for name, most in self._ads_capacity.items():
            if encoded.size[name] > most:
                problem = f"{encoded.size[name]:,} values; at most {most:,} are read"
                raise InvalidRequest(f"candidates.{name}", problem)
        return encoded

    def score(
        self,
        user: Mapping[str, Any] | None = None,
        behaviors: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        candidates: Candidates = (),
        time: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """Computes the click probabilities of candidates, float64 [C].

        Args:
          user, behaviors, context, time: see `user`.
          candidates: {field of the ad: raw values} or [{field of the ad: raw value}].

        Raises:
          InvalidRequest: see `user`.
        """
        return self.user(user, behaviors, context, time).score(candidates)

    def rank(
        self,
        user: Mapping[str, Any] | None = None,
        behaviors: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        candidates: Candidates = (),
        time: int | None = None,
        bids: Sequence[float] | None = None,
        *,
        alpha: float = 1.0,
    ) -> Ranking:
        """Orders candidates by CTR^α · bid (the paper's footnote 4), the greatest first.

        Args:
          user, behaviors, context, candidates, time: see `score`.
          bids: [C], 0 or more; by default all are 1.
          alpha: α, over 0.

        Raises:
          InvalidRequest: see `user`; or the bids do not fit.
        """
        return self.user(user, behaviors, context, time).rank(candidates, bids, alpha=alpha)

    def explain(
        self,
        user: Mapping[str, Any] | None = None,
        behaviors: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        candidates: Candidates = (),
        time: int | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Computes the activation weights, {sequence: [C, behaviours]}.

        They are the weights whose weighted sum of the behaviours' vectors is the interest in the
        candidate (Eq. 3), normalized if the model normalizes them. A behaviour that is not used, as
        it is too old or later than `time`, has 0.

        Args: see `score`.

        Raises:
          InvalidRequest: see `user`.
          DinError: the model has no activation unit.
        """
        return self.user(user, behaviors, context, time).explain(candidates)

    def score_encoded(self, requests: Sequence[tuple[Encoded, Encoded]]) -> list[Scored]:
        """Scores several requests together, each a user and ads as `encoder` gives them."""
        pieces: list[tuple[int, int]] = []  # a request, and the first of its candidates
        for i, (_, ads) in enumerate(requests):
            pieces += [(i, begin) for begin in range(0, ads.size[""], self.max_candidates)]
        results = [self._empty(user, ads.size[""]) for user, ads in requests]
        at_once = self._users[-1]
        for first in range(0, len(pieces), at_once):
            self._score_pieces(requests, pieces[first : first + at_once], results)
        return results

    def _score_pieces(
        self,
        requests: Sequence[tuple[Encoded, Encoded]],
        pieces: Sequence[tuple[int, int]],
        results: Sequence[Scored],
    ) -> None:
        users = [requests[i][0] for i, _ in pieces]
        ads = [_part(requests[i][1], begin, self.max_candidates) for i, begin in pieces]
        axes = self._behaviors.axes
        longest = [max(u.size[axis] for u in users) for axis in axes]
        candidates = max(a.size[""] for a in ads)
        rows = next(n for n in self._users if n >= len(pieces))
        arguments = pad(
            users,
            ads,
            self.artifact.schema,
            self._behaviors.smallest(longest),
            {"": next(n for n in self._candidates if n >= candidates), **self._ads_capacity},
            rows,
        )
        logits, weights = self._call(arguments)
        for row, ((i, begin), of_piece) in enumerate(zip(pieces, ads, strict=True)):
            end = begin + of_piece.size[""]
            z = logits[row, : end - begin].astype(np.float64)
            results[i].logit[begin:end] = z
            for name, all_weights in weights.items():
                places, _ = requests[i][0].chosen[name]
                found = all_weights[row, : end - begin, : len(places)]
                results[i].weights[name][begin:end, places] = found

    def _call(self, arguments: Any) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
        logits, weights = self._program(arguments)(self._weights, *arguments)
        return np.asarray(logits), {name: np.asarray(w) for name, w in weights.items()}

    def _program(self, arguments: Any) -> Any:
        """The program of these shapes, which is compiled if there is none."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(arguments))
        if shapes not in self._compiled:
            with self._lock:
                if shapes not in self._compiled:  # another thread may have been here
                    lowered = self._function.lower(self._weights, *arguments)
                    options = cpu.compiler_options() if jax.default_backend() == "cpu" else {}
                    self._compiled[shapes] = lowered.compile(compiler_options=options)
        return self._compiled[shapes]

    def _empty(self, user: Encoded, candidates: int) -> Scored:
        with_unit = self.artifact.manifest["activation_weights"]
        return Scored(
            np.empty(candidates),
            {
                name: np.zeros((candidates, given), np.float32)
                for name, (_, given) in user.chosen.items()
                if name in with_unit
            },
        )

    def _longest(self, longest: Mapping[str, int]) -> dict[str, int]:
        """{packed axis: the most entries that are scored}."""
        histories = {s.name for s in self.artifact.schema.sequences}
        most = self.artifact.manifest["max_history"]
        return {
            # A list may be longer than all that training has seen; a history is cut.
            axis: max(1, most if axis in histories else 2 * length)
            for axis, length in longest.items()
        }

    def _behaviors_at_most(self, axis: str) -> int:
        return self._behaviors.sizes[-1][self._behaviors.axes.index(axis)]

    def _warm(self) -> None:
        """Compiles all shapes."""
        none = dict.fromkeys
        user = self.encoder.user(
            none(self.encoder.user_fields), {}, none(self.encoder.context_fields), 0
        )
        ads = self.encoder.ads({name: [None] for name in self.encoder.ad_fields})
        for size in self._behaviors.sizes:
            capacity = dict(zip(self._behaviors.axes, size, strict=True))
            for candidates in self._candidates:
                for rows in self._users:
                    ads_capacity = {"": candidates, **self._ads_capacity}
                    schema = self.artifact.schema
                    self._program(pad([user], [ads], schema, capacity, ads_capacity, rows))

    def _probe(self) -> tuple[Encoded, Encoded]:
        request = self.artifact.probe["request"]
        user = self.encoder.user(
            request["user"], request["behaviors"], request["context"], request.get("time")
        )
        return user, self.encoder.ads(request["candidates"])

    def _check_probe(self) -> None:
        """Raises DinError unless the probe has the scores that it had when it was exported."""
        expected = np.array(self.artifact.probe["logits"])
        found = self.score_encoded([self._probe()])[0].logit
        difference = np.abs(found - expected).max(initial=0)
        if not difference <= _TOLERANCE * (1 + np.abs(expected).max(initial=0)):
            raise DinError(
                f"{self.artifact.path}: the probe's logits differ by {difference:.2g} from "
                "those of the export: the model is damaged, or this platform computes otherwise"
            )


def _computes_alike(one: Scorer, other: Scorer) -> bool:
    """Whether the programs of one scorer are those of another: a function of equal shapes."""

    def of(scorer: Scorer) -> tuple[object, ...]:
        manifest = scorer.artifact.manifest
        return manifest["files"]["scoring.bin"], manifest["arrays"], manifest["config"]["model"]

    return of(one) == of(other)


def _part(ads: Encoded, begin: int, size: int) -> Encoded:
    """The ads from `begin` on, `size` at most."""
    number = min(size, ads.size[""] - begin)
    if number == ads.size[""]:
        return ads
    part = slice(begin, begin + number)
    arrays = {
        name: {kind: lists[part] for kind, lists in values.items()}
        if isinstance(values, dict)
        else values[part]
        for name, values in ads.arrays.items()
    }
    return ads._replace(arrays=arrays, size={**ads.size, "": number})
