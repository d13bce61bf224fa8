"""Log files of open-unlearning: what one says of a retrained model, and ours in their layout.

`TOFU_EVAL.json` (`MUSE_EVAL.json`) is an object of metrics, each of them

    {"agg_value": number, "value_by_index": {"0": {...}, "1": {...}}}

with one entry for each row: "score", "prob" and "avg_loss", or "rougeL_recall", "input",
"ground_truth" and "generation". The index is the row's place in its data set. Metrics that compare
sets have no rows; a membership attack has its "auc", and under "forget" and "holdout" such an
object each. `TOFU_SUMMARY.json` has the name and the number of each metric, and no rows.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.data.rows import Row
from jaxunlearn.errors import UserError
from jaxunlearn.evaluation import open_unlearning, privacy
from jaxunlearn.writing import write_text

_TRUTH_RATIO = ("forget_truth_ratio", "forget_Truth_Ratio")
_RIGHT, _WRONG = "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"
_ROUGE = "forget_Q_A_ROUGE"
_MIN_K = "mia_min_k"
# Before there were attacks as metrics, MUSE's PrivLeak made its AUC from these.
_MIN_K_FORGET, _MIN_K_HOLDOUT = "forget_minKpc_neg_logprob", "holdout_minKpc_neg_logprob"

_NAMES: dict[str, tuple[str, str | None]] = {
    "model_utility": ("model_utility", None),
    "forget_quality": ("forget_quality", None),
    "forget_probability": ("forget_Q_A_Prob", "prob"),
    "forget_rouge": (_ROUGE, "rougeL_recall"),
    "forget_truth_ratio": (_TRUTH_RATIO[0], "score"),
    "forget_exact_memorisation": ("exact_memorization", "score"),
    "forget_extraction_strength": ("extraction_strength", "score"),
    "retain_probability": ("retain_Q_A_Prob", "prob"),
    "retain_rouge": ("retain_Q_A_ROUGE", "rougeL_recall"),
    "retain_truth_ratio": ("retain_Truth_Ratio", None),
    "real_authors_probability": ("ra_Q_A_Prob_normalised", "prob"),
    "real_authors_rouge": ("ra_Q_A_ROUGE", "rougeL_recall"),
    "real_authors_truth_ratio": ("ra_Truth_Ratio", None),
    "world_facts_probability": ("wf_Q_A_Prob_normalised", "prob"),
    "world_facts_rouge": ("wf_Q_A_ROUGE", "rougeL_recall"),
    "world_facts_truth_ratio": ("wf_Truth_Ratio", None),
    "privacy_loss_auc": ("mia_loss", None),
    "privacy_zlib_auc": ("mia_zlib", None),
    "privacy_min_k_auc": (_MIN_K, None),
    "privacy_min_k_plus_plus_auc": ("mia_min_k_plus_plus", None),
    "privacy_gradient_norm_auc": ("mia_gradnorm", None),
    "privacy_reference_auc": ("mia_reference", None),
    "priv_leak": ("privleak", None),
}
"""Our metric to theirs, and to the key of a row's value."""


@dataclass(frozen=True)
class Log:
    """What a log says of the retrained model."""

    path: Path
    rows: int
    """In its forget set."""
    truth_ratios: np.ndarray | None
    """float64 [rows], R of each forget row; nan where it has none. None: not measured."""
    min_k_auc: float | None
    """As `privacy.auc` of `open_unlearning.min_k`. None: not measured."""
    texts: tuple[tuple[str, str], ...]
    """Prompt, with its template, and answer of each forget row; empty where they were not
    recorded."""


def read_log(path: str | Path) -> Log:
    """Reads a `TOFU_EVAL.json` or `MUSE_EVAL.json` of any version.

    The truth ratio is made from the losses that it was made from there, if they are in the log: by
    its setting `aggregator: prob_mean`, "score" is another number.

    Raises:
      UserError: the file cannot be read, is not of this layout, misses rows, or has neither truth
        ratios nor the Min-K% attack.
    """
    path = Path(path)
    log = _read_metrics(path)
    auc = _min_k_auc(path, log)
    ratios = _truth_ratios(path, log)
    if ratios is None:
        if auc is None:
            raise UserError(
                f"{path}: has neither {_TRUTH_RATIO[0]} nor {_MIN_K}; evaluate the retrained model"
                " with open-unlearning's metrics forget_quality and privleak, which make them"
            )
        return Log(path, _attacked(path, log), None, auc, ())
    texts = _texts(path, log)
    found = sorted(ratios.keys() | texts.keys())
    if found != list(range(len(found))):
        gap = next(i for i, index in enumerate(found) if i != index)
        raise UserError(f"{path}: row {gap} is missing; evaluate the retrained model again")
    if texts and len(texts) < len(found):
        gap = min(ratios.keys() - texts.keys())
        raise UserError(
            f"{path}: {_ROUGE} has no row {gap} and {_TRUTH_RATIO[0]} has; evaluate the retrained"
            " model again, on one forget set"
        )
    values = np.array([ratios.get(i, math.nan) for i in found], np.float64)
    return Log(path, len(found), values, auc, tuple(texts[i] for i in sorted(texts)))


def check_split(log: Log, forget_rows: Sequence[Row]) -> None:
    """Checks that a log is about these forget rows, in this order.

    Prompt and answer must hold the texts of the row, white space aside: a tokenizer's decoder puts
    it elsewhere. A log without texts is only asked for its number of rows.

    Raises:
      UserError: it has other rows; the message names the first one, or both numbers.
    """
    mend = "give the log of a model that was retrained without this forget set"
    if log.rows != len(forget_rows):
        raise UserError(
            f"{log.path}: has {log.rows} forget rows, the forget set {len(forget_rows)}; {mend}"
        )
    for i, (row, texts) in enumerate(zip(forget_rows, log.texts, strict=False)):
        for key, ours, theirs in zip(("input", "ground_truth"), row.key[:2], texts, strict=True):
            if _squeezed(ours) not in _squeezed(theirs):
                where = f"{row.source}: " if row.source else ""
                raise UserError(
                    f"{log.path}: {_ROUGE}: row {i}: {key} is {theirs!r}, the forget set has"
                    f" {where}{ours!r}; {mend}"
                )


def refuse_existing(folder: str | Path) -> tuple[Path, Path]:
    """The two files that `write_logs` writes.

    Raises:
      UserError: one of them is there already, or the folder is a file.
    """
    paths = Path(folder) / "TOFU_EVAL.json", Path(folder) / "TOFU_SUMMARY.json"
    for path in paths:
        if path.exists():
            raise UserError(f"{path}: is there already; move it away or name another folder")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    return paths


def write_logs(
    folder: str | Path,
    metrics: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Sequence[float | None]],
    generations: Mapping[str, Sequence[str]],
    texts: Mapping[str, Sequence[tuple[str, str]]],
) -> tuple[Path, Path]:
    """Writes `TOFU_EVAL.json` and `TOFU_SUMMARY.json`, which open-unlearning takes as its own.

    Metrics without a name there are left out, and so are rows without a value, other than those
    of ROUGE, whose texts tell which data set it is. Each file is there completely or not at all.

    Args:
      folder: is made where it is missing.
      metrics: our name to an entry of `summary.json`; by `open_unlearning` where that differs.
      rows: our name to the value of each row; of `forget_truth_ratio` to R. Truth ratios of other
        sets have no rows here, because their values are not R.
      generations: set to the generated answer of each row.
      texts: set to the question and the answer of each row.

    Returns:
      Both paths.

    Raises:
      UserError: one of the files is there already, or the folder cannot be made.
      ValueError: a set's rows, generations and texts differ in number, or a value is not finite.
    """
    folder = Path(folder)
    paths = refuse_existing(folder)
    log = _log(metrics, rows, generations, texts)
    known = {name: entry["agg_value"] for name, entry in log.items()}
    summary = {name: value for name, value in known.items() if value is not None}
    contents = [json.dumps(content, indent=4, allow_nan=False) for content in (log, summary)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be made ({error.strerror}); name another folder"
        ) from None
    for path, content in zip(paths, contents, strict=True):
        write_text(path, content)
    return paths


def _log(
    metrics: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Sequence[float | None]],
    generations: Mapping[str, Sequence[str]],
    texts: Mapping[str, Sequence[tuple[str, str]]],
) -> dict[str, dict[str, Any]]:
    """Their name to their entry, sorted."""
    log: dict[str, dict[str, Any]] = {}
    for ours, (theirs, key) in _NAMES.items():
        if ours not in metrics:
            continue
        value = metrics[ours]["value"]
        log[theirs] = {"agg_value": value}
        if theirs.startswith("mia_"):
            log[theirs]["auc"] = value
        if key is None or ours not in rows:
            continue
        found = {str(i): {key: value} for i, value in enumerate(rows[ours])}
        if key == "rougeL_recall":
            name = ours.removesuffix("_rouge")
            told = zip(found.values(), texts[name], generations[name], strict=True)
            for entry, (question, answer, *_), text in told:
                entry |= {"input": question, "ground_truth": answer, "generation": text}
        else:
            found = {i: entry for i, entry in found.items() if entry[key] is not None}
        log[theirs]["value_by_index"] = found
    return dict(sorted(log.items()))


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; give the TOFU_EVAL.json of the retrained model"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read as JSON ({error}); give the TOFU_EVAL.json of the retrained"
            " model"
        ) from None
    found = log.items() if isinstance(log, dict) else ()
    if measured := {name: metric for name, metric in found if isinstance(metric, dict)}:
        return measured
    raise UserError(
        f"{path}: not metrics with their rows, as open-unlearning writes them; give the"
        " TOFU_EVAL.json of the retrained model (TOFU_SUMMARY.json has no rows)"
    )


def _truth_ratios(path: Path, log: Mapping[str, Any]) -> dict[int, float] | None:
    """Row to R; None where it was not measured."""
    if _RIGHT in log and _WRONG in log:
        right, wrong = (
            _values(path, log, _RIGHT, "avg_loss"),
            _values(path, log, _WRONG, "avg_loss"),
        )
        return {
            i: float(open_unlearning.truth_ratio([-np.mean(right[i])], [-np.array(wrong[i])])[0])
            for i in right.keys() & wrong.keys()
        }
    for name in _TRUTH_RATIO:
        if name in log:
            return {i: found[0] for i, found in _values(path, log, name, "score").items()}
    return None


def _min_k_auc(path: Path, log: Mapping[str, Any]) -> float | None:
    if _MIN_K in log:
        return _numbers(path, f"{_MIN_K}: agg_value", log[_MIN_K].get("agg_value"))[0]
    if _MIN_K_FORGET not in log or _MIN_K_HOLDOUT not in log:
        return None
    sides = [_values(path, log, name, "score") for name in (_MIN_K_FORGET, _MIN_K_HOLDOUT)]
    forget, holdout = (-np.array([found[0] for found in side.values()]) for side in sides)
    return privacy.auc(forget, holdout)


def _attacked(path: Path, log: Mapping[str, Any]) -> int:
    """How many forget rows the Min-K% attack had."""
    if _MIN_K in log:
        return len(_by_index(path, log[_MIN_K].get("forget"), f"{_MIN_K}: forget"))
    return len(_by_index(path, log[_MIN_K_FORGET], _MIN_K_FORGET))


def _texts(path: Path, log: Mapping[str, Any]) -> dict[int, tuple[str, str]]:
    if "value_by_index" not in log.get(_ROUGE, ()):
        return {}
    found = {}
    for i, entry in _by_index(path, log[_ROUGE], _ROUGE).items():
        texts = entry.get("input"), entry.get("ground_truth")
        if not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{path}: {_ROUGE}: row {i}: input and ground_truth must be texts; evaluate the"
                " retrained model again"
            )
        found[i] = texts
    return found


def _values(path: Path, log: Mapping[str, Any], name: str, key: str) -> dict[int, list[float]]:
    """Row to its numbers: one, or one for each wrong answer."""
    rows = _by_index(path, log[name], name)
    return {
        i: _numbers(path, f"{name}: row {i}: {key}", entry.get(key)) for i, entry in rows.items()
    }


def _numbers(path: Path, where: str, value: Any) -> list[float]:
    """A number that is not negative, or a list of them; NaN is one."""
    values = value if isinstance(value, list) else [value]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if values and numbers and all(v >= 0 or math.isnan(v) for v in values):
        return [float(v) for v in values]
    raise UserError(
        f"{path}: {where} must be a number >= 0, found {value!r}; evaluate the retrained model"
        " again"
    )


def _by_index(path: Path, metric: Any, name: str) -> dict[int, dict[str, Any]]:
    """The rows of a metric that have values, by their place in the data set."""
    rows = metric.get("value_by_index") if isinstance(metric, dict) else None
    good = isinstance(rows, dict) and all(
        key.isdecimal() and isinstance(entry, dict | None) for key, entry in rows.items()
    )
    if not good or not rows:
        raise UserError(
            f"{path}: {name}: has no rows under value_by_index; give the file that open-unlearning"
            " wrote, or evaluate the retrained model again"
        )
    return {int(key): entry for key, entry in rows.items() if entry is not None}


def _squeezed(text: str) -> str:
    return "".join(text.split())
