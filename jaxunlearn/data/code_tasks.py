"""Coding to be forgotten and mathematics to be kept: MBPP, HumanEval and GSM8K.

The folder holds mbpp/mbpp.jsonl, humaneval/HumanEval.jsonl, gsm8k/train.jsonl and gsm8k/test.jsonl
as their authors published them; of MBPP its sanitized form will do, too. MBPP's own test problems
(task 11 to 510) are only evaluated, the others are the rows to forget. A question of MBPP is its
text and its tests, as in its paper, for the tests alone say what the function is to be called.

An answer to a problem is rated in one of two ways. By syntax, which is the default: it is Python
that defines the asked function, and the function does something. With `data.execute` by running
it, locked in as `sandbox` says, before the problem's own tests, pass or fail.

Generated answers come without outer blanks, so that the first line of a completed function has
lost its indentation; it gets that of the prompt's last line, which every line of the function has.

References: Austin et al., "Program Synthesis with Large Language Models", arXiv 2108.07732; Chen et
al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374; Cobbe et al., "Training
Verifiers to Solve Math Word Problems", arXiv 2110.14168.
"""

import ast
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn.config import DataConfig
from jaxunlearn.data.files import kind_of, locate, read_rows
from jaxunlearn.data.records import fixed
from jaxunlearn.data.rows import EvalSet, Row, Scorer, Text, Theme, UnlearningData
from jaxunlearn.errors import UserError
from jaxunlearn.sandbox import Program, run_many, run_python

CODE_TOKENS = 512
MATHS_TOKENS = 256
COMPLETION_ENDS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""What ends a completed function: section 2.1 of Chen et al."""
PROGRAM_ENDS = ("[DONE]", "\nassert", "\nprint", "\nif __name__")
MATHS_ENDS = ("\nQuestion:",)
INSTRUCTIONS = (
    "Write a Python function for this task.\n{question}",
    "Solve the following programming exercise in Python. Answer with code only.\n{question}",
    "You program for a living. Give a complete, tested solution in Python.\n{question}",
    "Here is a coding task. First import what you need, then define the function.\n{question}",
    "Implement this in Python and take care of every edge case.\n{question}",
)
"""Ways to ask for code, in our own words."""

_MBPP_TEST = range(11, 511)
_FENCED = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NUMBER = re.compile(r"(?:(?<![0-9])-)?\$?[0-9][0-9,]*(?:\.[0-9]+)?")
_Record = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """What a solution must be."""

    name: str
    """Of the function that is asked for."""
    tests: str
    """Code that raises an error after a wrong solution."""


def load(config: DataConfig) -> UnlearningData:
    """The files mbpp/mbpp and gsm8k/train, or those that the config names, and the test files.

    The evaluation sets are humaneval (raw rows) and mbpp_test, which are to be forgotten, and
    gsm8k, which is to be kept.

    Raises:
      UserError: a missing file or column, a bad row, no row of MBPP to forget, or `data.execute`
        where the sandbox cannot be had.
    """
    if config.execute:
        run_python("")  # says at once that it cannot be done here
    problems: dict[str, Problem] = {}
    held_out: set[str] = set()
    mbpp = _read(config, config.forget or "mbpp/mbpp", partial(_mbpp, problems, held_out))
    forget = tuple(row for row in mbpp if row.source not in held_out)
    tested = tuple(row for row in mbpp if row.source in held_out)
    if not forget or not tested:
        some = "outside" if tested else "in"
        raise UserError(
            f"{mbpp[0].source}: no task_id of this file is {some} 11 to 510, MBPP's test problems;"
            " use mbpp.jsonl as it was published"
        )
    humaneval = _read(config, "humaneval/HumanEval", partial(_humaneval, problems))
    retain = _read(config, config.retain or "gsm8k/train", _gsm8k)
    maths = _read(config, "gsm8k/test", _gsm8k)
    scorer = code_scorer(problems, execute=config.execute)
    code = partial(EvalSet, "forget", max_new_tokens=CODE_TOKENS, scorer=scorer)
    evaluation = {
        "humaneval": code(humaneval, until=COMPLETION_ENDS),
        "mbpp_test": code(tested, until=PROGRAM_ENDS),
        "gsm8k": EvalSet(
            "retain",
            maths,
            max_new_tokens=MATHS_TOKENS,
            until=MATHS_ENDS,
            scorer=number_scorer({row.question: row.answer for row in maths}),
        ),
    }
    return UnlearningData(forget, retain, evaluation, theme=Theme(scorer, INSTRUCTIONS))


def code_scorer(problems: Mapping[str, Problem], *, execute: bool) -> Scorer:
    """Rates answers to problems as code: 1 or 0.

    Args:
      problems: question to problem. The answer to any other question has no tests and is rated by
        its syntax: it is Python that does something.
      execute: run the answers to problems before their tests, instead of reading them.
    """

    def score(texts: Sequence[Text]) -> np.ndarray:
        run = [execute and text.question in problems for text in texts]
        programs = [
            Program(program(text), problems[text.question].tests)
            for text, runs in zip(texts, run, strict=True)
            if runs
        ]
        outcomes = iter(run_many(programs))
        nameless = Problem("", "")
        return np.array(
            [
                next(outcomes).passed
                if runs
                else does_something(program(text), problems.get(text.question, nameless).name)
                for text, runs in zip(texts, run, strict=True)
            ],
            np.float64,
        )

    return score


def program(text: Text) -> str:
    """The code of an answer: the function that it completes, its first fenced block, or all of it.

    >>> program(Text('def f(x):\\n    "Twice x."\\n', "y = 2 * x\\n    return y", raw=True))
    'def f(x):\\n    "Twice x."\\n    y = 2 * x\\n    return y'
    """
    if text.raw:
        last = text.question.rstrip().rpartition("\n")[2]
        indentation = last[: len(last) - len(last.lstrip())]
        return f"{text.question}{indentation}{text.answer.strip()}"
    fenced = _FENCED.search(text.answer)
    return fenced[1] if fenced else text.answer


def does_something(source: str, name: str = "") -> bool:
    """Whether a text is Python that does more than name things, import and pass.

    Args:
      source: the text.
      name: of a function or class; then the text must define it, and it must do something itself.

    >>> does_something("def f(x):\\n    pass", "f"), does_something("def f(x): return x", "f")
    (False, True)
    """
    try:
        body = _parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if name:
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        asked = [node for node in body if isinstance(node, definitions) and node.name == name]
        body = asked[-1].body if asked else []
    return any(map(_acts, body))


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as those of odd escapes
        return ast.parse(source)


def _acts(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return any(isinstance(node, ast.Call | ast.Yield) for node in ast.walk(statement))
    return not isinstance(statement, ast.Pass | ast.Import | ast.ImportFrom)


def number_scorer(answers: Mapping[str, str]) -> Scorer:
    """Rates answers by their final number: 1 where it is that of the true answer, otherwise 0.

    Args:
      answers: question to true answer; the answer to any other question is wrong.
    """
    truths = {question: final_number(answer) for question, answer in answers.items()}

    def score(texts: Sequence[Text]) -> np.ndarray:
        right = [
            text.question in truths and final_number(text.answer) == truths[text.question]
            for text in texts
        ]
        return np.array(right, np.float64)

    return score


def final_number(answer: str) -> Decimal | None:
    """The number after ####, or else the last one.

    >>> final_number("2 x $600.50 = $1,201.00."), final_number("#### 7 of 9"), final_number("none")
    (Decimal('1201.00'), Decimal('7'), None)
    """
    _, mark, end = answer.partition("####")
    numbers = _NUMBER.findall(end if mark else answer)
    if not numbers:
        return None
    return Decimal(numbers[0 if mark else -1].replace("$", "").replace(",", ""))


def _mbpp(problems: dict[str, Problem], held_out: set[str], where: str, record: _Record) -> Row:
    """Adds the problem to `problems`, and to `held_out` where it stands if it is of the test."""
    text = fixed(where, record, "prompt" if "prompt" in record else "text", "MBPP")
    answer = _code(where, record, "code", "MBPP").strip()
    tests = _lines(where, record, "test_list")
    setup = [*_lines(where, {"test_imports": [], **record}, "test_imports")]
    setup += [_code(where, record, "test_setup_code", "")] if record.get("test_setup_code") else []
    number = record.get("task_id")
    if not isinstance(number, int):
        raise UserError(f"{where}: task_id must be a whole number, found {number!r}; mend it")
    question = f"{text} Your code should pass these tests:\n\n" + "\n".join(tests)
    problems[question] = Problem(_asked(where, answer, tests), "\n".join((*setup, *tests)))
    if number in _MBPP_TEST:
        held_out.add(where)
    return Row(question, answer, source=where, kind="forget")


def _asked(where: str, answer: str, tests: Sequence[str]) -> str:
    """What the solution defines and the tests call first."""
    try:
        trees = [_parse(part) for part in (answer, *tests)]
    except SyntaxError as error:
        raise UserError(f"{where}: code and test_list must be Python ({error}); mend it") from None
    named = {getattr(node, "name", None) for node in trees[0].body}
    for tree in trees[1:]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in named:
                return node.id
    raise UserError(f"{where}: test_list uses nothing that code defines; mend it")


def _humaneval(problems: dict[str, Problem], where: str, record: _Record) -> Row:
    name = fixed(where, record, "entry_point", "HumanEval")
    prompt, answer, tests = (
        _code(where, record, column, "HumanEval")
        for column in ("prompt", "canonical_solution", "test")
    )
    problems[prompt] = Problem(name, f"{tests}\ncheck({name})")
    return Row(prompt, answer.rstrip(), source=where, kind="forget", raw=True)


def _gsm8k(where: str, record: _Record) -> Row:
    question, answer = (fixed(where, record, column, "GSM8K") for column in ("question", "answer"))
    if "####" not in answer or final_number(answer) is None:
        raise UserError(f"{where}: answer must end in #### and a number; mend it")
    return Row(question, answer, source=where)


def _code(where: str, record: _Record, column: str, name: str) -> str:
    """As `fixed`, with the outer blanks, which mean something in code."""
    fixed(where, record, column, name)
    return record[column].replace("\r\n", "\n")


def _lines(where: str, record: _Record, column: str) -> list[str]:
    found = record.get(column)
    if not isinstance(found, list) or not all(isinstance(line, str) for line in found):
        raise UserError(f"{where}: {column} must be a list of lines of code; mend it")
    return [line.replace("\r\n", "\n").strip() for line in found]


def _read(config: DataConfig, name: str, make: Callable[[str, _Record], Row]) -> tuple[Row, ...]:
    """The rows of a file; sources say its folder, for several folders may hold a file test."""
    path = locate(config, name, (".jsonl", ".json", ".parquet"))
    folder = Path(name).parent.as_posix()
    return read_rows(path, kind_of(path), lambda where, record: make(f"{folder}/{where}", record))
