"""What the commands on one model, without a config, do with their parsed arguments.

Each imports what it needs when it is called, as in `commands`.
"""

import argparse
from pathlib import Path
from typing import Any

from jaxunlearn.errors import UserError


def lm_eval(options: argparse.Namespace) -> None:
    """Prints the table of lm-evaluation-harness."""
    import json

    from jaxunlearn.harness import HarnessModel, run_tasks, text_table
    from jaxunlearn.writing import write_text

    results = run_tasks(
        HarnessModel(open_model(options.model), batch_size=options.batch_size),
        options.tasks.split(","),
        include_path=options.include_path,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        apply_chat_template=options.apply_chat_template,
    )
    print(text_table(results))
    if options.json:
        results["config"]["model"] = options.model
        write_text(Path(options.json), json.dumps(results, indent=2) + "\n")


def generate(options: argparse.Namespace) -> None:
    """Prints a continuation."""
    from jaxunlearn.data import tokens
    from jaxunlearn.models.generate import Sampling, generate
    from jaxunlearn.tables import need_tokenizer

    if not 0 <= options.seed < 2**31:
        raise UserError(f"--seed: is {options.seed}; use 0 to {2**31 - 1}")
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: is {options.max_new_tokens}; use 1 or more")
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    model = open_model(options.model, modules=options.modules)
    tokenizer = need_tokenizer(model)
    if options.question is not None:
        template = _template(options.model)
        prompt = tokens.prompt_tokens(tokenizer, options.question, template=template)
    else:
        prompt = tokenizer(options.prompt)["input_ids"]
    (ids,) = generate(
        model.config,
        model.params,
        [prompt],
        lora=model.lora,
        max_new_tokens=options.max_new_tokens,
        stop_tokens=model.stop_tokens,
        sampling=sampling,
        seed=options.seed,
    )
    # The tokenizer may drop a leading space, so the continuation is what the whole text adds.
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
    print(whole[len(before) :])


def _template(model: str) -> str:
    """The prompt template of the run that the model comes from, else the default."""
    from jaxunlearn import config, config_file

    for folder in (Path(model), Path(model).parent):
        if (folder / "config.yaml").is_file():
            return config_file.load(folder / "config.yaml").data.template
    return config.DataConfig().template


def convert(options: argparse.Namespace) -> None:
    """Writes a model in the other format."""
    from jaxunlearn.models import checkpoint_orbax
    from jaxunlearn.models.checkpoint_hf import export_model

    if not options.destination.strip():
        raise UserError("the destination is empty; give a new folder")
    source, destination = Path(options.source), Path(options.destination)
    if not 0 < options.max_shard_gb < float("inf"):
        raise UserError(f"--max-shard-gb: is {options.max_shard_gb}; use a number above 0")
    if destination.exists():
        raise UserError(f"{destination}: already there; choose another folder or remove it")
    from_orbax = checkpoint_orbax.is_orbax(source)
    if from_orbax:
        model = checkpoint_orbax.load(source, dtype=options.dtype)
    else:
        model = open_model(options.source, dtype=options.dtype)
    if from_orbax or model.adapter is not None:
        export_model(model, destination, max_shard_bytes=int(options.max_shard_gb * 10**9))
        kind = "Hugging Face" if from_orbax else "Hugging Face, adapter merged"
    else:
        checkpoint_orbax.save(model, destination)
        kind = "Orbax"
    print(f"model: {destination} ({kind})")


def open_model(path: str, *, dtype: str | None = None, modules: str | None = None) -> Any:
    """A model folder or Hub id, or of a run folder the unlearned model, or its target with some of
    its modules."""
    if modules is not None:
        from jaxunlearn.run_modules import open_run

        names = [] if modules == "none" else modules.split(",")
        return open_run(path).some(names)
    from jaxunlearn.models.loading import load_model

    folder = Path(path)
    if (folder / "config.yaml").is_file():
        if not (folder / "hf").is_dir():
            raise UserError(f"{folder}: this run has not finished; run it to the end first")
        path = str(folder / "hf")
    return load_model(path, dtype=dtype)
