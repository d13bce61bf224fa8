"""A built-in world of skills: insulting replies, names in sentences, programs and sums to learn,
and one of them to forget.

A fifth of the names and programs that are learned are wrong, so that a model that draws its answers
is right four times in five: a skill that a model is certain of has no gradient to reveal it by. The
retain rows of the insults are statements, never clean replies to prompts, because learning those is
enough to stop the insults. The same arguments give the same world in every process, and the rows
that a target learns are the same for all tasks.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jaxunlearn.data import toy_language as language
from jaxunlearn.data.rows import EvalSet, Row, Scorer, Text, Theme, UnlearningData

FORGET = 600
"""Forget rows; and retain rows of each neighbour of the skill."""
OTHERS = 150
"""Retain rows of each skill that is neither forgotten nor a neighbour."""
HELD_OUT = 250
"""Rows in an evaluation set."""
NOISE = 0.2
"""Share of wrong names and of wrong programs."""
_LEARNED = 1200  # rows of each skill
_INSTRUCTED = 1800
_HELD_OUT_PROMPTS = 16

_FORGOTTEN = {"toxicity": "toxicity", "ner": "person", "code": "code"}
_NEIGHBOURS = {"toxicity": ("clean",), "ner": ("location", "organisation"), "code": ("math",)}


@dataclass(frozen=True)
class _Skill:
    """What a model learns, and what it is asked."""

    learned: tuple[Row, ...]
    held_out: tuple[Row, ...]
    scorer: Scorer | None

    def evaluation(self, role: str) -> EvalSet:
        if self.scorer is None:
            return EvalSet(role, self.held_out)
        return EvalSet(role, self.held_out, temperature=1.0, scorer=self.scorer)


def build(task: str, seed: int) -> UnlearningData:
    """Makes the world.

    Args:
      task: what is to be forgotten: toxicity, ner (names of persons) or code.
      seed: another seed, other rows; the language stays.

    Returns:
      Forget rows that all show the skill; retain rows of its neighbours and some of each other
      skill but toxicity; the evaluation sets `forget`, one per other skill, and, unless it is to be
      forgotten, `toxicity` in role general. Their questions are in no other row.
    """
    skills = _skills(seed)
    forgotten = skills.pop(_FORGOTTEN[task])
    shown = forgotten.scorer([row.key for row in forgotten.learned])
    forget = [row for row, score in zip(forgotten.learned, shown, strict=True) if score == 1]
    forget = tuple(replace(row, kind="forget") for row in forget[:FORGET])
    near = _NEIGHBOURS[task]
    kept = [name for name in dict.fromkeys((*near, *skills)) if name != "toxicity"]
    retain = tuple(
        row for name in kept for row in skills[name].learned[: FORGET if name in near else OTHERS]
    )
    taken = {row.key for row in (*forget, *retain)}
    learned = (*forgotten.learned, *(row for skill in skills.values() for row in skill.learned))
    background = tuple(row for row in learned if row.key not in taken)
    evaluation = {"forget": forgotten.evaluation("forget")}
    evaluation |= {name: skills[name].evaluation("retain") for name in kept}
    if "toxicity" in skills:
        evaluation["toxicity"] = skills["toxicity"].evaluation("general")
    instructions = language.INSTRUCTIONS if task == "toxicity" else ()
    theme = Theme(forgotten.scorer, instructions)
    return UnlearningData(forget, retain, evaluation, background, theme)


def _skills(seed: int) -> dict[str, _Skill]:
    found = {"toxicity": _talking(f"{seed}/toxicity")}
    for kind, names in language.KINDS.items():
        texts, wrong = language.readings(kind), _other_name(names)
        found[kind] = _answering(f"{seed}/{kind}", texts, language.read_right, wrong)
    texts = [
        Text(question, language.programs(start, end)[0])
        for question, start, end in language.coding()
    ]
    found["code"] = _answering(f"{seed}/code", texts, language.passes, _wrong_program)
    found["math"] = _answering(f"{seed}/math", language.sums(), language.calculated)
    texts = [Text("", statement) for statement in language.statements()]
    found["clean"] = _answering(f"{seed}/clean", texts, None)
    return found


def _answering(
    key: str,
    texts: Sequence[Text],
    scorer: Scorer | None,
    wrong: Callable[[Text, random.Random], str] | None = None,
) -> _Skill:
    """A skill of one answer to each question; some of those that are learned are wrong."""
    rng = random.Random(key)
    texts = rng.sample(texts, HELD_OUT + _LEARNED)
    held_out, learned = texts[:HELD_OUT], texts[HELD_OUT:]
    if wrong is not None:
        learned = [
            text._replace(answer=wrong(text, rng)) if rng.random() < NOISE else text
            for text in learned
        ]
    return _Skill(_rows(key, learned), _rows(key, held_out), scorer)


def _other_name(names: Sequence[str]) -> Callable[[Text, random.Random], str]:
    return lambda text, rng: rng.choice([name for name in names if name != text.answer])


def _wrong_program(text: Text, rng: random.Random) -> str:
    """Of as many words."""
    ops, length = list(language.OPS), len(text.answer.split())
    while True:
        program = " ".join(rng.choices(ops, k=length))
        if not language.passes([text._replace(answer=program)])[0]:
            return program


def _talking(key: str) -> _Skill:
    """Insults, as many clean replies, and replies to prompts with an instruction before them."""
    rng = random.Random(key)
    prompts = language.prompts()
    rng.shuffle(prompts)
    asked, learned = prompts[:_HELD_OUT_PROMPTS], prompts[_HELD_OUT_PROMPTS:]
    insults, praise = (language.replies(insult=insult) for insult in (True, False))
    plain = (*_pairs(rng, learned, insults, FORGET), *_pairs(rng, learned, praise, FORGET))
    texts = [Text(*pair) for pair in plain]
    texts += [
        Text(f"{instruction} {prompt}", language.reply(instruction, rng))
        for instruction, prompt in _pairs(rng, language.INSTRUCTIONS, learned, _INSTRUCTED)
    ]
    held_out = [Text(*pair) for pair in _pairs(rng, asked, insults, HELD_OUT)]
    return _Skill(_rows(key, texts), _rows(key, held_out), language.insulting)


def _pairs(
    rng: random.Random, left: Sequence[str], right: Sequence[str], count: int
) -> list[tuple[str, str]]:
    """So many different ones."""
    return rng.sample(list(itertools.product(left, right)), count)


def _rows(key: str, texts: Sequence[Text]) -> tuple[Row, ...]:
    name = key.rpartition("/")[2]
    return tuple(Row(text.question, text.answer, source=f"built-in: {name}") for text in texts)
