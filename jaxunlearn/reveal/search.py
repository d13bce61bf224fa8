"""Which way of asking brings out most of what is to be forgotten: a search with a bandit.

Each round of the outer loop tries some of its fresh candidates at random; the best of all so far
are what a fresh bandit starts from, and the inner loop tries what the bandit selects. No candidate
is tried twice.

Reference:
  Xie et al., Reveal and Release, arXiv 2509.14624: two loops around NeuralUCB, and a weighted
  harmonic mean of relevance and diversity as the reward, as summaries of the paper say. Sizes and
  what is carried over are ours.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.config_reveal import RevealConfig
from jaxunlearn.data.rows import Scorer, Text
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import embed as embedding
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.placement import spread_model
from jaxunlearn.reveal import bandit, scorers
from jaxunlearn.reveal.candidates import Candidate, Proposer
from jaxunlearn.reveal.diversity import joint_diversity
from jaxunlearn.reveal.drawing import draw
from jaxunlearn.reveal.features import features
from jaxunlearn.reveal.reward import weighted_harmonic_mean
from jaxunlearn.reveal.search_log import SearchLog

_ORDER = 2**32 - 1  # as a pull's number: the order of a round's initial pulls
_NOT_SEARCHED = {"scorer", "prompts", "instructions", "best", "rows", "filters", "batch_size"}


class Rated(NamedTuple):
    """A candidate and what its answers are worth, each in [0, 1]."""

    candidate: Candidate
    reward: float
    relevance: float
    diversity: float


def search(
    model: LanguageModel,
    questions: Sequence[Text],
    scorer: Scorer,
    proposer: Proposer,
    settings: RevealConfig,
    *,
    template: str,
    seed: int,
    log: Path | None = None,
    existing: Sequence[str] = (),
    embed: embedding.Embedder | None = None,
    say: Callable[[str], None],
) -> list[Rated]:
    """Every candidate that was tried, the best first.

    A pull draws `settings.samples` answers to as many questions, each question as often as any
    other. Relevance is the mean score, diversity the normalised Vendi score of the answers, joint
    with as many of `existing`.

    Args:
      model: with a tokenizer.
      questions: at least one; a scorer sees them as they are here, without instruction, with the
        model's answers in the place of theirs.
      scorer: how much an answer is about what is to be forgotten.
      proposer: of the candidates; see `proposing.proposer`.
      settings: sizes, sampling, reward and bandit.
      template: the prompt of models without a chat template, with {question} in it.
      seed: of all that is random.
      log: a file to which every pull is appended, with its answers. A search that finds its own
        log there takes the pulls from it and goes on.
      existing: texts that are there already.
      embed: from answers to vectors; default: mean last hidden states of the model, minus those
        of the questions.
      say: told what is tried and found, never an answer.

    Raises:
      UserError: there is nothing to ask, the scorer fails, or the log is of another search.
    """
    if not questions:
        raise UserError("reveal: there is no question to ask; name a file at reveal.prompts")
    model = spread_model(model)
    first = proposer(0)
    marks = _marks(model, questions, first, existing, settings, template, seed)
    if embed is None:
        embed = embedding.from_model(model, [text.question for text in questions])
    trial = _Trial(
        model, questions, scorers.checked(scorer, "the scorer"), settings, template, seed,
        SearchLog(log, marks), tuple(existing), embed,
    )  # fmt: skip
    rated: dict[str, Rated] = {}
    for outer in range(settings.outer):
        fresh = {_key(c): c for c in (proposer(outer) if outer else first)}
        fresh = [c for key, c in fresh.items() if key not in rated]
        if not fresh:
            say(f"search: no candidate is left for round {outer}")
            break
        _round(trial, outer, fresh, rated, say)
    return _best(rated)


def _round(
    trial: "_Trial",
    outer: int,
    fresh: Sequence[Candidate],
    rated: dict[str, Rated],
    say: Callable[[str], None],
) -> None:
    """One turn of the outer loop; what it finds goes into `rated`."""
    settings, count = trial.settings, len(fresh)
    initial = min(settings.initial, count)
    pulls = min(settings.pulls, count - initial)
    if initial + pulls < settings.initial + settings.pulls:
        say(
            f"search: round {outer} has {count} candidates that were not tried yet: {initial} "
            f"initial pulls, not {settings.initial}, and {pulls} of the bandit, not "
            f"{settings.pulls}"
        )
    order = np.random.default_rng([trial.seed, outer, _ORDER]).permutation(count)
    for number, place in enumerate(order[:initial]):
        rated[_key(fresh[place])] = trial.pull(outer, number, fresh[place])
    say(f"search: round {outer}, {initial} initial pulls: {_told(list(rated.values())[-initial:])}")
    if not pulls:
        return
    start = _best(rated)[: settings.carried]
    pool = [one.candidate for one in start] + [fresh[place] for place in order[initial:]]
    contexts = jnp.asarray(
        features(trial.model, pool, trial.questions[0], settings, template=trial.template)
    )
    key = jax.random.fold_in(jax.random.key(trial.seed), outer)
    state = bandit.init(settings.bandit, contexts, capacity=len(start) + pulls, key=key)
    arms, rewards = list(range(len(start))), [one.reward for one in start]
    found = []
    for number in range(initial, initial + pulls):
        state = bandit.observe(settings.bandit, state, contexts, arms, rewards)
        arms = [bandit.select(settings.bandit, state, contexts)]
        candidate = pool[arms[0]]
        # A bandit that may repeat itself is told what is known.
        one = rated.get(_key(candidate)) or trial.pull(outer, number, candidate)
        rated[_key(candidate)] = one
        rewards = [one.reward]
        found.append(one)
    say(f"search: round {outer}, {pulls} pulls of the bandit: {_told(found)}")


@dataclasses.dataclass(frozen=True)
class _Trial:
    """What every pull needs."""

    model: LanguageModel
    questions: Sequence[Text]
    scorer: Scorer
    settings: RevealConfig
    template: str
    seed: int
    log: SearchLog
    existing: Sequence[str]
    embed: embedding.Embedder

    def pull(self, outer: int, number: int, candidate: Candidate) -> Rated:
        """The candidate with its reward, from the log or from new answers."""
        earlier = self.log.find(outer, number, candidate.name, candidate.instruction)
        if earlier is not None and earlier["reward"] is not None:
            values = (earlier[name] for name in ("reward", "relevance", "diversity"))
            return Rated(candidate, *values)
        samples = self.settings.samples
        rng = np.random.default_rng([self.seed, outer, number])
        chosen = np.resize(rng.permutation(len(self.questions)), samples).tolist()
        questions, seed = [self.questions[i] for i in chosen], int(rng.integers(2**31))
        record = earlier or {
            "outer": outer,
            "pull": number,
            "candidate": candidate.name,
            "instruction": candidate.instruction,
            "seed": seed,
            "texts": samples,
            "questions": chosen,
            "answers": draw(
                self.model,
                [candidate] * samples,
                questions,
                self.settings,
                template=self.template,
                seed=seed,
            ).texts,
            "reward": None,
        }
        try:
            rated = self._rated(candidate, questions, record["answers"], rng)
        # Whatever a user's scorer or embedder raises: the answers took long and shall not be lost.
        except Exception:
            if earlier is None:
                self.log.write(record)
            raise
        values = {"relevance": rated.relevance, "diversity": rated.diversity}
        self.log.write({**record, **values, "reward": rated.reward})
        return rated

    def _rated(
        self,
        candidate: Candidate,
        questions: Sequence[Text],
        answers: Sequence[str],
        rng: np.random.Generator,
    ) -> Rated:
        texts = [one._replace(answer=said) for one, said in zip(questions, answers, strict=True)]
        relevance = float(self.scorer(texts).mean())
        batch = self.embed(answers)
        there = self._existing if self.existing else np.zeros((0, batch.shape[1]))
        diversity = joint_diversity(batch, there, size=len(answers), rng=rng)
        reward = weighted_harmonic_mean(relevance, diversity, weight=self.settings.reward_weight)
        return Rated(candidate, float(reward), relevance, diversity)

    @functools.cached_property
    def _existing(self) -> np.ndarray:
        return self.embed(self.existing)


def _key(candidate: Candidate) -> str:
    """Candidates with one instruction are one candidate."""
    return candidate.instruction or candidate.name


def _best(rated: dict[str, Rated]) -> list[Rated]:
    return sorted(rated.values(), key=lambda one: -one.reward)


def _told(found: Sequence[Rated]) -> str:
    best = max(found, key=lambda one: one.reward)
    mean = np.mean([one.reward for one in found])
    return (
        f"mean reward {mean:.3f}, best {best.reward:.3f} of {best.candidate.name} (relevance "
        f"{best.relevance:.3f}, diversity {best.diversity:.3f})"
    )


def _marks(
    model: LanguageModel,
    questions: Sequence[Text],
    first: Sequence[Candidate],
    existing: Sequence[str],
    settings: RevealConfig,
    template: str,
    seed: int,
) -> dict[str, str]:
    """Hashes of all that decides what is pulled and drawn."""
    fields = {k: v for k, v in dataclasses.asdict(settings).items() if k not in _NOT_SEARCHED}
    sizes = jax.tree.map(float, jax.device_get(_sizes((model.params, model.lora))))
    parts: dict[str, Any] = {
        "settings": sorted(fields.items()),
        "model": (model.config, sizes),
        "questions": list(questions),
        "candidates": [(c.name, c.instruction) for c in first],
        "existing texts": list(existing),
        "template": template,
        "seed": seed,
    }
    return {
        name: hashlib.sha256(repr(part).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        for name, part in parts.items()
    }


@jax.jit
def _sizes(tree: Any) -> Any:
    """The sum of absolute values of each array."""
    return jax.tree.map(lambda leaf: jnp.sum(jnp.abs(leaf.astype(jnp.float32))), tree)
