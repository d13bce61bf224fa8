"""The house: imports point one way, and importing the package is light."""

import ast
import subprocess
import sys
from pathlib import Path

import jaxunlearn

PACKAGE = Path(jaxunlearn.__file__).parent
# A module may import what stands to its left, and its own part.
ORDER = [
    "errors", "extras", "writing", "validation", "user_file", "config_data", "config_reveal",
    "config_adapter", "config_attribution", "config_parallel", "config", "config_file",
    "sandbox_child", "sandbox",
    "data", "models",
    "methods",
    "training", "evaluation", "tables", "unlearning_job", "unlearning", "attribution", "reveal",
    "progress", "runs", "modules", "release", "dareu", "attributing", "evaluating", "checking",
    "stages", "experiment", "plan", "run_modules", "shadows", "attacks",
    "sweeping", "api", "harness", "commands_model", "commands", "commands_adapter",
    "compile_cache", "cli",
]  # fmt: skip


def parts_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxunlearn"):
            pieces = node.module.split(".")
            yield from [pieces[1]] if len(pieces) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("jaxunlearn."):
                    yield alias.name.split(".")[1]


def test_imports_point_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for other in parts_imported(path):
            if other in ORDER and ORDER.index(other) > ORDER.index(part):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert not wrong


def loaded_by(code):
    command = f"import sys; {code}; print(*sorted(m for m in sys.modules if '.' not in m))"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    return set(result.stdout.splitlines()[-1].split())


def test_import_is_light():
    heavy = {"jax", "flax", "numpy", "transformers", "datasets", "orbax", "pydantic", "rich"}
    assert not heavy & loaded_by("import jaxunlearn")
    help_ = "from jaxunlearn.cli import _parser; _parser().format_help()"
    assert not heavy & loaded_by(help_)


def test_torch_is_never_imported():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [str(path) for name in names if name.split(".")[0] in ("torch", "peft")]
    assert not wrong


def test_lazy_names_resolve():
    for name in jaxunlearn.__all__:
        assert getattr(jaxunlearn, name) is not None
