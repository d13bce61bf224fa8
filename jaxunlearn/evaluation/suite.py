"""The evaluation of one model: plan the rows, forward each once, generate once, compute metrics."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxunlearn.config import EvaluationConfig
from jaxunlearn.data import tokens
from jaxunlearn.data.rows import EvalSet, Text
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import benchmark, embed, measuring
from jaxunlearn.evaluation.answering import answer_texts
from jaxunlearn.evaluation.embed import Embedder
from jaxunlearn.evaluation.entries import entry
from jaxunlearn.evaluation.forward import score
from jaxunlearn.evaluation.gradient_norm import gradient_norm_score
from jaxunlearn.evaluation.measuring import Rows
from jaxunlearn.evaluation.open_unlearning_logs import Log
from jaxunlearn.evaluation.results import Results, Scores, Table
from jaxunlearn.evaluation.statistics import STATISTICS, Statistic
from jaxunlearn.models.generate import Sampling
from jaxunlearn.models.int8 import with_float_kernels
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.placement import spread_model

OnRows = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """What one model scored; plain data, so that it can be kept as JSON."""

    metrics: Table
    """Name to {"value", "n", "ci"}; value None where it could not be computed."""
    rows: Rows
    """`SET_STATISTIC` to the number of each of its rows, such as `forget_rouge`."""
    roles: dict[str, str]
    """Evaluation set to its role."""
    generations: dict[str, list[str]]
    """Evaluation set to the generated answer of each of its rows, where a metric needs one."""
    left_out: int
    """Texts longer than the model's limit, which no number covers."""
    no_room: int
    """Questions so long that the model has no room for an answer; they count as empty answers."""

    def of_role(self, role: str, statistic: str) -> np.ndarray | None:
        """A statistic of all rows of the sets of this role, nan where none; None if not known."""
        names = [f"{name}_{statistic}" for name, own in self.roles.items() if own == role]
        if not names or any(name not in self.rows for name in names):
            return None
        values = [value for name in names for value in self.rows[name]]
        return np.array([np.nan if value is None else value for value in values], np.float64)


def check(config: EvaluationConfig, sets: Mapping[str, EvalSet] | None = None) -> None:
    """Refuses settings that the suite cannot follow.

    Args:
      config: of the evaluation.
      sets: name to rows and role, if known.

    Raises:
      UserError: no such suite, a setting that means nothing to it, or nothing for it to measure.
    """
    chosen = benchmark.load(config.suite)
    used = {metric.statistic for metric in chosen.metrics if metric.statistic}
    if config.embedder is not None and not any(STATISTICS[name].embeds for name in used):
        raise UserError(
            f"evaluation.embedder: suite {config.suite} does not compare meanings; leave it out"
        )
    if (config.compat == "melu") > ("melu" in used):
        raise UserError(f"evaluation.compat: melu is for suite melu, not {config.suite}")
    if sets is not None and not chosen.names(sets, compared=True):
        there = ", ".join(f"{name} ({one.role})" for name, one in sets.items())
        raise UserError(
            f"evaluation.suite: {config.suite} measures nothing of the evaluation sets {there};"
            " choose another suite, or add its sets with data.sets"
        )


def evaluate(
    model: LanguageModel,
    sets: Mapping[str, EvalSet],
    config: EvaluationConfig,
    *,
    template: str,
    max_length: int,
    judge: LanguageModel | None = None,
    on_rows: OnRows | None = None,
) -> Evaluation:
    """Scores a model on evaluation sets, as the config's suite does.

    Args:
      model: with a tokenizer.
      sets: name to rows and role; `limit_sets` cuts them down. Sets that no metric needs are not
        forwarded.
      config: suite, batch size, generation length and embedder.
      template: prompt for tokenizers without a chat template.
      max_length: tokens a row may have; longer ones are left out and counted.
      judge: says how likely generated answers are, and embeds texts where the config names no
        embedder. Models that are to be compared need the same one; None: the model itself.
      on_rows: called with (rows done, rows in all) as work goes on.

    Raises:
      UserError: no such suite, the tokenizer is not the model's own, or the embedder cannot be
        used.
    """
    chosen = benchmark.load(config.suite)
    roles = {name: one.role for name, one in sets.items()}
    plan = {
        name: [STATISTICS[one] for one in statistics]
        for name, statistics in chosen.plan(sets).items()
    }
    own = judge is None or judge is model
    # Once for all parts; each would otherwise copy the params to all devices for itself.
    model = spread_model(model)
    judge = model if own else judge
    work = _Work(model, judge, config, template, max_length)
    texts = sorted(
        {
            text
            for name, statistics in plan.items()
            for row in sets[name].rows
            for statistic in statistics
            for text in statistic.texts(row)
        }
    )
    asked = _sets_that(plan, "generates")
    judged = _sets_that(plan, "judged")
    sloped = _sets_that(plan, "gradients")
    work.expect(len(texts), *(len(sets[n].rows) for n in (*asked, *judged, *sloped)), show=on_rows)
    moments = any(one.moments for statistics in plan.values() for one in statistics)
    scores = work.score(model, texts, moments=moments)
    generations, no_room = work.generate({name: sets[name] for name in asked})
    said = [
        row.text(answer)
        for name in judged
        for row, answer in zip(sets[name].rows, generations[name], strict=True)
        if answer
    ]
    results = Results(
        sets,
        scores,
        generations,
        {name: work.truths(sets[name]) for name in asked},
        final_eos=model.tokenizer.eos_token_id is not None,
        embedder=_embedder(judge, sets, config),
        config=config,
        judged=work.judge_texts(said, scores),
        gradient_norms=work.gradient_norms([row.key for n in sloped for row in sets[n].rows]),
    )
    work.done()
    table, rows = measuring.measure(chosen, results)
    left_out = len(texts) - len(scores.place)
    return Evaluation(table, rows, roles, generations, left_out, no_room)


def limit_sets(sets: Mapping[str, EvalSet], limit: int | None) -> dict[str, EvalSet]:
    """At most `limit` rows of each set, spread evenly over it."""
    if limit is None:
        return dict(sets)
    cut = {}
    for name, chosen in sets.items():
        count = min(limit, len(chosen.rows))
        places = [i * len(chosen.rows) // count for i in range(count)]
        rows = tuple(chosen.rows[place] for place in places)
        cut[name] = dataclasses.replace(chosen, rows=rows)
    return cut


def needs_judge(config: EvaluationConfig) -> bool:
    """Whether another model than the evaluated one has a say."""
    used = [STATISTICS[m.statistic] for m in benchmark.load(config.suite).metrics if m.statistic]
    embeds = config.embedder is None and any(one.embeds for one in used)
    return embeds or any(one.judged for one in used)


def comparable(config: EvaluationConfig, evaluation: Evaluation) -> bool:
    """Whether a retrained model adds anything to an evaluation."""
    return bool(against_retrained(config, evaluation, evaluation))


def against_retrained(
    config: EvaluationConfig, evaluation: Evaluation, retrained: Evaluation
) -> Table:
    """What comparing a model to the retrained one adds: forget quality, PrivLeak and the like, as
    far as the suite has them.

    Args:
      config: of both evaluations.
      evaluation: of the model.
      retrained: of the model that never saw the forget rows, on the same sets.
    """
    chosen = benchmark.load(config.suite)
    ours, theirs = ((one.metrics, one.rows) for one in (evaluation, retrained))
    return measuring.against(chosen, evaluation.roles, ours, theirs, config.compat)


def against_log(config: EvaluationConfig, evaluation: Evaluation, log: Log) -> Table:
    """`against_retrained`, as far as a log of open-unlearning tells of the retrained model."""
    table: Table = {}
    if log.min_k_auc is not None:
        table["privacy_min_k_auc"] = entry(log.min_k_auc, log.rows)
    rows: Rows = {}
    if log.truth_ratios is not None:
        rows["forget_truth_ratio"] = [v if np.isfinite(v) else None for v in log.truth_ratios]
    chosen, ours = benchmark.load(config.suite), (evaluation.metrics, evaluation.rows)
    return measuring.against(chosen, evaluation.roles, ours, (table, rows), config.compat)


def _sets_that(plan: Mapping[str, Sequence[Statistic]], need: str) -> list[str]:
    """The sets of which a statistic has this need."""
    return [name for name, found in plan.items() if any(getattr(one, need) for one in found)]


class _Work:
    """The passes of one evaluation, and how far they have come."""

    def __init__(
        self,
        model: LanguageModel,
        judge: LanguageModel,
        config: EvaluationConfig,
        template: str,
        max_length: int,
    ):
        self.model, self.judge, self.config = model, judge, config
        self.template, self.max_length = template, max_length
        self._rows, self._total, self._show = 0, 0, None

    def expect(self, *rows: int, show: OnRows | None) -> None:
        self._total, self._show = sum(rows), show

    def add(self, rows: int) -> None:
        self._rows += rows
        if self._show is not None:
            self._show(min(self._rows, self._total), self._total)

    def done(self) -> None:
        """Texts that needed no work of their own count as done."""
        self.add(self._total - self._rows)

    def score(self, model: LanguageModel, texts: Sequence[Text], *, moments: bool) -> Scores:
        encoded = self._encode(model, texts)
        stats = score(
            model.config,
            model.params,
            encoded.table,
            lora=model.lora,
            batch_size=self.config.batch_size,
            moments=moments,
            on_rows=self.add,
        )
        return Scores(stats, {texts[index]: row for row, index in enumerate(encoded.kept)})

    def generate(self, sets: Mapping[str, EvalSet]) -> tuple[dict[str, list[str]], int]:
        """Set to its answers, and how many questions left no room; the most likely answer to a
        prompt is looked for once."""
        tokenizer, found, no_room = self.model.tokenizer, {}, 0
        ways = {name: (one.max_new_tokens, one.temperature) for name, one in sets.items()}
        for length, temperature in dict.fromkeys(ways.values()):
            names = [name for name in sets if ways[name] == (length, temperature)]
            keys = [row.text("") for name in names for row in sets[name].rows]
            # Drawn answers differ, so each row has its own.
            asked = keys if temperature else list(dict.fromkeys(keys))
            prompts = [
                tokens.prompt_tokens(tokenizer, key.question, template=self.template, raw=key.raw)
                for key in asked
            ]
            settings = self.config
            if length is not None:
                settings = dataclasses.replace(settings, max_new_tokens=length)
            sampling = Sampling(temperature)
            answers = answer_texts(
                self.model, prompts, settings, sampling=sampling, on_rows=self.add
            )
            no_room += answers.no_room
            texts = answers.texts
            if not temperature:
                answer_to = dict(zip(asked, texts, strict=True))
                texts = [answer_to[key] for key in keys]
            rest = iter(texts)
            for name in names:
                said = itertools.islice(rest, len(sets[name].rows))
                found[name] = [_until(text, sets[name].until) for text in said]
        return {name: found[name] for name in sets}, no_room

    def truths(self, chosen: EvalSet) -> list[str]:
        """The answers, as far as generations of the set can have them."""
        answers = [row.answer for row in chosen.rows]
        if not chosen.cut:
            return answers
        tokenizer, most = self.model.tokenizer, chosen.max_new_tokens or self.config.max_new_tokens
        ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
        return [tokenizer.decode(one[:most], skip_special_tokens=True) for one in ids]

    def judge_texts(self, texts: Sequence[Text], scores: Scores) -> dict[Text, float]:
        """Mean log-probability of texts under the judge."""
        distinct = list(dict.fromkeys(texts))
        # What the judge itself was evaluated on is known already.
        known = [text for text in distinct if self.judge is self.model and text in scores.place]
        found = dict(zip(known, scores.mean_log_probs(known), strict=True))
        new = sorted(set(distinct) - set(known))
        if new:
            # Moments are not read, but with them these are the programs that are compiled already.
            moments = scores.stats.means is not None
            judged = self.score(self.judge, new, moments=moments)
            found |= dict(zip(new, judged.mean_log_probs(new), strict=True))
        return found

    def gradient_norms(self, texts: Sequence[Text]) -> dict[Text, float]:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        encoded, model = self._encode(self.model, distinct), self.model
        theirs = self.config.compat == "open-unlearning"
        # Gradients are of floats, also those of kernels in int8.
        params = with_float_kernels(model.params) if model.adapter is None else model.params
        norms = gradient_norm_score(
            model.config, params, encoded.table, lora=model.lora, by_tensor=theirs
        )
        return {distinct[index]: float(norms[row]) for row, index in enumerate(encoded.kept)}

    def _encode(self, model: LanguageModel, texts: Sequence[Text]) -> tokens.Encoded:
        return tokens.encode(
            model.tokenizer,
            texts,
            template=self.template,
            max_length=min(self.max_length, model.config.max_positions),
        )


def _until(answer: str, ends: Sequence[str]) -> str:
    """The answer before the first of its ends."""
    for end in ends:
        answer = answer.partition(end)[0]
    return answer.strip()


def _embedder(
    judge: LanguageModel, sets: Mapping[str, EvalSet], config: EvaluationConfig
) -> Embedder:
    if config.embedder is not None:
        return embed.load(config.embedder)
    answers = [row.answer for one in sets.values() if one.role != "holdout" for row in one.rows]
    return embed.from_model(judge, answers, batch_size=config.batch_size)
