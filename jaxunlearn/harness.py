"""Our models for EleutherAI's lm-evaluation-harness, which then runs any of its tasks on them.

What a model is given and what comes back are those of the harness's own Hugging Face model: the
same tokens, the same windows, the same cuts. Importing this module needs the extra `lm-eval`.

Reference: Gao et al., "The Language Model Evaluation Harness", doi 10.5281/zenodo.12608602.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from tqdm import tqdm

from jaxunlearn.data.tokens import WIDTH_STEP, make_table
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation.forward import score
from jaxunlearn.models.generate import Sampling, generate
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model
from jaxunlearn.tables import need_tokenizer

try:
    import lm_eval
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise UserError("lm_eval is not installed; pip install 'jaxunlearn[lm-eval]'") from None

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import (
    get_rolling_token_windows,
    handle_non_serializable,
    make_disjoint_window,
    warning_once,
)
from lm_eval.utils import make_table as make_text_table

_GENERATION = ("until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p")


@register_model("jaxunlearn")
class HarnessModel(TemplateLM):
    """A model as the harness takes it: `lm_eval.simple_evaluate(model=HarnessModel("folder"))`.

    Args:
      path: Hugging Face folder, Hub id, PEFT adapter folder, or a model in memory.
      batch_size: rows in one forward pass, and prompts decoded together.
      max_length: tokens the model sees at once; default: all of its positions.
      seed: of the draws of tasks that sample.

    Raises:
      UserError: the model cannot be loaded, it has no tokenizer or one that marks neither the
        begin nor the end of a text, or a number is out of range.
    """

    def __init__(
        self,
        path: str | Path | LanguageModel,
        *,
        batch_size: int | str = 8,
        max_length: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.model = path if isinstance(path, LanguageModel) else load_model(path)
        self.tokenizer = need_tokenizer(self.model)
        positions = self.model.config.max_positions
        self.max_length = positions if max_length is None else max_length
        if not 1 <= self.max_length <= positions:
            raise UserError(f"max_length: is {max_length}; use 1 to {positions}, the model's own")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size: is {batch_size}; use a whole number of 1 or more")
        self.batch_size, self.seed = int(batch_size), seed
        if self.prefix_token_id is None:
            raise UserError(
                f"{self.model.folder}: the tokenizer has neither a bos_token nor an eos_token; "
                "name one in its tokenizer_config.json, as texts are scored after it"
            )

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What stands before a text that has no context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Part of the name under which the harness caches requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Tokens of a text; special ones as the tokenizer puts them, unless it has them already."""
        if add_special_tokens is None:
            prefix = self.tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not string.startswith(prefix)
        coded = self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False)
        return coded["input_ids"]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text; templates that know no system turn get none.

        Args:
          chat_history: turns with role and content.
          add_generation_prompt: open the model's turn; else the last turn is left open.

        Raises:
          UserError: the tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise UserError(
                f"{self.model.folder}: the tokenizer has no chat template; leave out "
                "apply_chat_template"
            )

        def render(turns: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            return render(chat_history)
        except jinja2.TemplateError as error:
            turns = [turn for turn in chat_history if turn["role"] != "system"]
            if turns == chat_history:
                raise UserError(f"chat template: it cannot be applied ({error})") from None
            message = f"chat template: system turns are left out ({error})"
            warning_once(logging.getLogger(__name__), message)
            return render(turns)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether greedy decoding would give it.

        Contexts are cut on the left. The last token is only predicted, so that context and
        continuation may have one token more than the model sees at once.
        """
        pairs = []
        for _request, context, continuation in requests:
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise UserError(
                    f"a continuation has {len(continuation)} tokens, but the model sees "
                    f"{self.max_length} at once: it cannot run this task"
                )
            pairs.append((tuple(context[-room:]), tuple(continuation)))
        rows = {pair: row for row, pair in enumerate(dict.fromkeys(pairs))}
        if not rows:
            return []
        longest = max(len(context) + len(continuation) for context, continuation in rows)
        table = make_table(list(rows), -(-longest // WIDTH_STEP) * WIDTH_STEP)
        with tqdm(total=len(rows), desc="Scoring", disable=disable_tqdm) as bar:
            stats = score(
                self.model.config,
                self.model.params,
                table,
                lora=self.model.lora,
                batch_size=self.batch_size,
                on_rows=bar.update,
            )
        totals = np.where(stats.mask, stats.log_probs, 0).sum(axis=1, dtype=np.float64)
        greedy = (stats.hits | ~stats.mask).all(axis=1)
        return [(float(totals[rows[pair]]), bool(greedy[rows[pair]])) for pair in pairs]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, in windows that predict every token once."""
        windows, owners = [], []
        for place, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(
                tokens, self.prefix_token_id, self.max_length, context_len=1
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(place)
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for place, (log_prob, _greedy) in zip(owners, scored, strict=True):
            totals[place] += log_prob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model says after each context, up to the first of the task's stop strings.

        Args:
          requests: context and the task's generation_kwargs: max_gen_toks (default 256), until,
            do_sample, temperature, top_k, top_p. Sampling is over all tokens unless they say else.
          disable_tqdm: show no progress bar.

        Raises:
          UserError: generation_kwargs with another key, or that leave no room for a context.
        """
        alike: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(place)
        texts = [""] * len(requests)
        for places in alike.values():
            contexts = [requests[place].args[0] for place in places]
            said = self._continue(contexts, requests[places[0]].args[1], disable_tqdm)
            for place, text in zip(places, said, strict=True):
                texts[place] = text
        return texts

    def _continue(
        self, contexts: Sequence[str], generation_kwargs: dict[str, Any], disable_tqdm: bool
    ) -> list[str]:
        """What the model says after contexts that share their generation_kwargs."""
        settings = normalize_gen_kwargs(generation_kwargs)
        for key, value in settings.items():
            if key not in _GENERATION and (key, value) != ("num_beams", 1):
                raise UserError(
                    f"generation_kwargs: cannot do {key}={value}; there are "
                    f"{', '.join(_GENERATION)}"
                )
        limit, temperature = settings["max_gen_toks"], settings.get("temperature", 0.0)
        room = self.max_length - limit
        if room < 1:
            raise UserError(
                f"generation_kwargs: max_gen_toks is {limit}, but the model sees "
                f"{self.max_length} tokens at once; lower it, so that a context fits in"
            )
        prompts = [tuple(self.tok_encode(context)[-room:]) for context in contexts]
        # Repeats of a task are drawn one by one; what is greedy would only be said again.
        distinct = prompts if temperature else list(dict.fromkeys(prompts))
        with tqdm(total=len(distinct), desc="Generating", disable=disable_tqdm) as bar:
            said = generate(
                self.model.config,
                self.model.params,
                distinct,
                lora=self.model.lora,
                max_new_tokens=limit,
                stop_tokens=self.model.stop_tokens,
                sampling=Sampling(
                    temperature, settings.get("top_k", 0), settings.get("top_p", 1.0)
                ),
                seed=self.seed,
                batch_size=self.batch_size,
                on_rows=bar.update,
            )
        texts = [
            postprocess_generated_text(text, settings["until"], None)
            for text in self.tokenizer.batch_decode(said, skip_special_tokens=True)
        ]
        if temperature:
            return texts
        of_prompt = dict(zip(distinct, texts, strict=True))
        return [of_prompt[prompt] for prompt in prompts]


def run_tasks(
    model: HarnessModel,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
) -> dict[str, Any]:
    """Runs tasks of the harness.

    Args:
      model: that is tested.
      tasks: names of tasks, groups or tags; a * stands for anything.
      include_path: folder of task files of one's own.
      limit: at most this many documents of each task.
      num_fewshot: examples before each question; default: as the task says.
      apply_chat_template: put prompts into the tokenizer's chat template.

    Returns:
      The results as the harness gives them, without single documents, ready for JSON.

    Raises:
      UserError: no such folder, no such task, or a number out of range.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"include_path: {include_path}: no such folder")
    for name, value, least in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0)):
        if value is not None and value < least:
            raise UserError(f"{name}: is {value}; use {least} or more")
    manager = TaskManager(include_path=include_path)
    names: dict[str, None] = {}
    for task in tasks:
        found = manager.match_tasks([task])
        if not found:
            raise UserError(f"no task {task!r}; `lm_eval ls tasks` lists those of the harness")
        names |= dict.fromkeys(found)
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=list(names),
        task_manager=manager,
        batch_size=model.batch_size,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        log_samples=False,
    )
    return json.loads(json.dumps(results, default=handle_non_serializable))


def text_table(results: Mapping[str, Any]) -> str:
    """The harness's own tables of results: of tasks, and of groups where there are some."""
    parts = [part for part in ("results", "groups") if part in results]
    return "\n".join(make_text_table(results, part) for part in parts)
