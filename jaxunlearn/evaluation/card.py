"""The model card of an exported model."""

from collections.abc import Mapping
from typing import Any

import yaml

from jaxunlearn.evaluation import columns, statement, tabular
from jaxunlearn.models.hub import hub_id

_LOAD = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""


def model_card(summary: Mapping[str, Any]) -> str:
    """README.md of an exported model: what was unlearned, how, and with which numbers."""
    start = summary["config"]["model"]["path"]
    found = hub_id(start) if start else None
    head = {
        "library_name": "transformers",
        **({"base_model": found[0]} if found else {}),
        "tags": ["unlearning", "jaxunlearn"],
    }
    facts = [f"- **{key}**: {text}" for key, text in _facts(summary).items()]
    notes = [f"- {_plain(note)}" for note in summary.get("notes", [])]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {_plain(summary['name'])}: an unlearned model",
        _plain(statement.statement(summary)),
        "\n".join(facts),
        "## Numbers",
        f"The weights in this folder are those of `{summary['primary']}`. n: rows behind a value; "
        "of model utility in TOFU's suite: the metrics it is a mean of.",
        tabular.table(columns.with_training(summary)),
        *(["\n".join(notes)] if notes else []),
        "## How to load it",
        _LOAD,
    ]
    return "\n\n".join(parts)


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """What was forgotten and how, as the config says."""
    config, environment = summary["config"], summary.get("environment", {})
    path, data = config["model"]["path"], config["data"]
    forgotten = f"{data['forget_people']} of {data['people']} invented people (synthetic)"
    if data["format"] != "synthetic":
        place = f" in {_code(data['path'])}" if data["path"] else ""
        forgotten = f"{_code(data['forget'])}{place} ({data['format']})"
    rows = environment.get("data", {}).get("forget")
    hyper = {key: value for key, value in config["method"].items() if key != "name"}
    facts = {
        "Start model": _code(path) if path else "made by this run",
        "Trained first, to know the forgotten": _settings(config["finetune"]),
        "Forgotten": f"{forgotten}, {rows}" if rows else forgotten,
        "Method": f"{config['method']['name']} {_settings(hyper)}",
        "Training": _settings(config["training"]),
        "Adapter, merged into the weights": _settings(config["adapter"]),
        "Sampling": _settings(config["sampling"]),
        "Seed": str(config["seed"]),
        "Made with": f"jaxunlearn {environment.get('jaxunlearn', '')}".strip(),
    }
    return {key: text for key, text in facts.items() if text}


def _settings(section: Mapping[str, Any] | None) -> str:
    """`epochs=30, batch_size=20`, empty for no section; what is not set is left out."""
    found = {key: value for key, value in (section or {}).items() if value is not None}
    return _code(", ".join(f"{key}={value}" for key, value in found.items())) if found else ""


def _plain(text: Any) -> str:
    return " ".join(str(text).split())


def _code(text: Any) -> str:
    return f"`{_plain(str(text).replace('`', ' '))}`"
