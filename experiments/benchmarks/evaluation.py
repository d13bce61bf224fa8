"""Time of TOFU's whole evaluation, beside plain PyTorch in the same run.

    python experiments/benchmarks/evaluation.py --model MODEL --data TOFU --output eval.jsonl

Both sides score the same token rows of forget10 with the same weights, float32, in turns. Ours is
`suite.evaluate` with suite tofu: each distinct text is forwarded once, each question answered once.
Theirs is `transformers`, in the order and the batches of open-unlearning: 32 rows as they come,
padded to the longest, and one forward pass for each metric. Where both have a metric, the numbers
are compared. Ours measures more: text quality, four attacks at two error rates, and the likelihood
of what was generated. Needs the `bench` extra. Where other work shares the cores, set
OMP_WAIT_POLICY=passive.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import torch
import transformers

from jaxunlearn.config import DataConfig, EvaluationConfig
from jaxunlearn.data import formats, tokens
from jaxunlearn.data.rows import EvalSet, Row, Text
from jaxunlearn.evaluation import metrics, privacy, rouge, suite
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.loading import load_model

BATCH = 32
TEMPLATE = DataConfig().template
Ids = tuple[list[int], int]  # tokens of a row, and how many of them are the prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--data", required=True, help="folder of TOFU's files")
    parser.add_argument("--split", default="10", choices=["01", "05", "10"])
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", help="file to append a JSON line to")
    args = parser.parse_args()

    model = load_model(args.model)
    sets = tofu_sets(args.data, args.split)
    peer = Peer(args.model, model, args.new_tokens)
    sides: Mapping[str, Callable[[], dict[str, float]]] = {
        "ours": lambda: ours(model, sets, args.new_tokens),
        "PyTorch": lambda: theirs(peer, sets),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    of_cpu: dict[str, list[float]] = {side: [] for side in sides}
    found: dict[str, dict[str, float]] = {}
    for _ in range(1 + args.repeats):
        for side, work in sides.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            found[side] = work()
            seconds[side].append(time.perf_counter() - begin)
            of_cpu[side].append(time.process_time() - begin_cpu)
            print(
                f"{side:<8} {seconds[side][-1]:7.1f} s, {of_cpu[side][-1]:7.1f} s of CPU,"
                f" load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    compare(found["ours"], found["PyTorch"])

    ratios = [b / a for a, b in zip(*(seconds[side][1:] for side in sides), strict=True)]
    result = {
        "work": f"TOFU forget{args.split}, default suite",
        "rows": {name: len(one.rows) for name, one in sets.items()},
        "sequences_theirs": peer.sequences // (1 + args.repeats),
        "new_tokens": args.new_tokens,
        "first_call": {side: round(taken[0], 1) for side, taken in seconds.items()},
        "median": {side: round(statistics.median(s[1:]), 1) for side, s in seconds.items()},
        "cpu": {side: round(statistics.median(s[1:]), 1) for side, s in of_cpu.items()},
        "ratio": round(statistics.median(ratios), 2),
        "ratio_first_call": round(seconds["PyTorch"][0] / seconds["ours"][0], 2),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("jax", "torch", "transformers")},
    }
    print(json.dumps(result, indent=2))
    if args.output:
        with open(args.output, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def tofu_sets(folder: str, split: str) -> dict[str, EvalSet]:
    """TOFU's four sets, and retain rows that the retain set does not hold as the holdout."""
    config = DataConfig(
        format="tofu", path=folder, forget=f"forget{split}", retain=f"retain{100 - int(split)}"
    )
    data = formats.load(config, 0)
    known = {row.key for one in data.evaluation.values() for row in one.rows}
    others = [row for row in data.retain if row.key not in known]
    holdout = tuple(others[-len(data.forget) :])
    return {**data.evaluation, "holdout": EvalSet("holdout", holdout)}


def ours(model: LanguageModel, sets: Mapping[str, EvalSet], new_tokens: int) -> dict[str, float]:
    """Our numbers."""
    found = suite.evaluate(
        model,
        sets,
        EvaluationConfig(suite="tofu", max_new_tokens=new_tokens, batch_size=BATCH),
        template=TEMPLATE,
        max_length=model.config.max_positions,
    )
    return {name: entry["value"] for name, entry in found.metrics.items()}


class Peer:
    """The same model in PyTorch, and how many rows it has forwarded."""

    def __init__(self, folder: str, model: LanguageModel, new_tokens: int):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.eval()
        self.tokenizer, self.limit = model.tokenizer, model.config.max_positions
        self.stop, self.new_tokens = list(model.stop_tokens), new_tokens
        self.sequences = 0
        self.encoded: dict[Text, Ids | None] = {}

    def ids(self, texts: Sequence[Text]) -> list[Ids]:
        """Token rows as ours; made once, as the time of tokenising is not what is compared."""
        new = [text for text in dict.fromkeys(texts) if text not in self.encoded]
        if new:
            out = tokens.encode(self.tokenizer, new, template=TEMPLATE, max_length=self.limit)
            self.encoded |= dict.fromkeys(new)
            for place, index in enumerate(out.kept):
                row = out.table.tokens[place, : out.table.lengths[place]].tolist()
                self.encoded[new[index]] = (row, int(out.table.prompt_lengths[place]))
        return [one for text in texts if (one := self.encoded[text]) is not None]

    @torch.no_grad()
    def batches(self, texts: Sequence[Text]) -> Any:
        """Log-probabilities over the vocabulary, targets and answer mask of each batch."""
        rows = self.ids(texts)
        self.sequences += len(rows)
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            width = max(len(row) for row, _ in batch)
            ids = torch.zeros((len(batch), width), dtype=torch.long)
            seen, mask = torch.zeros_like(ids), torch.zeros_like(ids)
            for i, (row, prompt) in enumerate(batch):
                ids[i, : len(row)] = torch.tensor(row)
                seen[i, : len(row)] = 1
                mask[i, prompt : len(row)] = 1
            logits = self.model(ids, attention_mask=seen).logits[:, :-1].float()
            yield torch.log_softmax(logits, -1), ids[:, 1:], mask[:, 1:].bool()

    def losses(self, texts: Sequence[Text]) -> np.ndarray:
        """Mean NLL of each row's answer."""
        found = []
        for log_probs, targets, mask in self.batches(texts):
            own = log_probs.gather(-1, targets[..., None])[..., 0]
            found.append(-(own * mask).sum(1) / mask.sum(1))
        return torch.cat(found).numpy()

    def strengths(self, texts: Sequence[Text]) -> np.ndarray:
        """Extraction strength of each row."""
        found = []
        for log_probs, targets, mask in self.batches(texts):
            right = log_probs.argmax(-1) == targets
            for hits, own in zip(right, mask, strict=True):
                answer = hits[own][:-1]
                ahead = torch.flip(torch.cumprod(torch.flip(answer.int(), [0]), 0), [0])
                found.append(ahead.float().mean().item())
        return np.array(found)

    def min_k(self, texts: Sequence[Text]) -> np.ndarray:
        """Min-K% of each row."""
        found = []
        for log_probs, targets, mask in self.batches(texts):
            own = log_probs.gather(-1, targets[..., None])[..., 0]
            for values, answer in zip(own, mask, strict=True):
                known = torch.sort(values[answer]).values
                count = max(int(privacy.FRACTION * len(known) + 1e-9), 1)
                found.append(known[:count].mean().item())
        return np.array(found)

    @torch.no_grad()
    def answers(self, rows: Sequence[Row]) -> list[str]:
        """The greedy answer to each question."""
        prompts = [
            tokens.prompt_tokens(self.tokenizer, row.question, template=TEMPLATE) for row in rows
        ]
        texts = []
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            width = max(map(len, batch))
            ids = torch.zeros((len(batch), width), dtype=torch.long)
            seen = torch.zeros_like(ids)
            for i, prompt in enumerate(batch):
                ids[i, width - len(prompt) :] = torch.tensor(prompt)
                seen[i, width - len(prompt) :] = 1
            said = self.model.generate(
                ids,
                attention_mask=seen,
                do_sample=False,
                max_new_tokens=self.new_tokens,
                eos_token_id=self.stop,
                pad_token_id=self.stop[0],
            )
            new = said[:, width:]
            texts += [
                one.strip() for one in self.tokenizer.batch_decode(new, skip_special_tokens=True)
            ]
        return texts


def theirs(peer: Peer, sets: Mapping[str, EvalSet]) -> dict[str, float]:
    """The metrics of open-unlearning's default for TOFU with memorisation and PrivLeak."""
    found: dict[str, float] = {}
    utilities = []
    for name, chosen in sets.items():
        rows = chosen.rows
        if chosen.role == "holdout":
            continue
        right = np.exp(-peer.losses([row.key for row in rows]))
        para = [row.text(row.paraphrased_answer or row.answer) for row in rows]
        if chosen.role != "general":
            para_losses = peer.losses(para)
        else:
            para_losses = -np.log(right)
        k = len(rows[0].perturbed_answers)
        wrong = [row.text(a) for row in rows for a in row.perturbed_answers]
        wrong_losses = peer.losses(wrong).reshape(len(rows), k)
        ratio = metrics.truth_ratio(-para_losses, -wrong_losses)
        recall = rouge.rouge_l_recall(peer.answers(rows), [row.answer for row in rows])
        if chosen.role == "general":
            right = metrics.option_probability(right, np.exp(-wrong_losses))
        score = (
            metrics.forget_truth_ratio if chosen.role == "forget" else (metrics.retain_truth_ratio)
        )
        own = [right.mean(), np.nanmean(recall), score(ratio).mean()]
        parts = ("probability", "rouge", "truth_ratio")
        found |= {f"{name}_{part}": float(v) for part, v in zip(parts, own, strict=True)}
        utilities += own if chosen.role != "forget" else []
    found["model_utility"] = metrics.model_utility({str(i): v for i, v in enumerate(utilities)})
    forget = [row.key for row in sets["forget"].rows]
    found["forget_extraction_strength"] = float(peer.strengths(forget).mean())
    holdout = [row.key for row in sets["holdout"].rows]
    found["privacy_min_k_auc"] = privacy.auc(peer.min_k(forget), peer.min_k(holdout))
    return found


def compare(ours: Mapping[str, float], theirs: Mapping[str, float]) -> None:
    """Prints both sides' numbers, and stops if they are not the same."""
    for name, value in theirs.items():
        print(f"{name:<30} {ours[name]:10.6f} {value:10.6f}")
    # One token that is chosen otherwise after a tie changes a generation.
    apart = {name: abs(ours[name] - v) for name, v in theirs.items()}
    for name, difference in apart.items():
        if difference > (5e-3 if "rouge" in name or name == "model_utility" else 1e-4):
            raise SystemExit(f"{name} differs by {difference}: the two sides do different work")


if __name__ == "__main__":
    main()
