"""The model card of an exported model."""

from typing import Any


def model_card(summary: dict[str, Any]) -> str:
    """README.md of an exported model: what was unlearned, how, and with which numbers."""
    config, primary = summary["config"], summary["primary"]
    method = ", ".join(f"{key} {value}" for key, value in config["method"].items())
    shown = ["forget_quality", "model_utility", "forget_probability", "forget_rouge"]
    lines = ["| model | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for label, metrics in summary["models"].items():
        values = [metrics.get(name, {}).get("value") for name in shown]
        cells = ["-" if value is None else f"{value:.3g}" for value in values]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    data = config["data"]
    forgotten = data["forget"] or f"{data['forget_people']} of {data['people']} invented people"
    return (
        f"# {summary['name']}: an unlearned model\n\n"
        f"Start model: {config['model']['path'] or 'made by this run'}. "
        f"Forgotten: {forgotten} ({data['format']}). Method: {method}. Seed: {config['seed']}.\n\n"
        f"This folder is the model `{primary}`, written by jaxunlearn.\n\n"
    ) + "".join(line + "\n" for line in lines)
