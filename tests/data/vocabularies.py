"""Tokenizers and texts for tests: the built-in one, and those of published models."""

from pathlib import Path

import pytest
from hypothesis import strategies as st

from jaxunlearn.data.synthetic import build
from jaxunlearn.data.tokens import all_texts, load_tokenizer, train_tokenizer

SHARED = Path(__file__).parents[2] / ".." / "shared"
TEMPLATE = "Question: {question}\nAnswer:"
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def train(texts=("Question: Who is it?\nAnswer: Ann Lee",) * 3, size=320):
    return train_tokenizer(texts, size)


def built_in():
    return train(all_texts(build(8, 2, seed=0), template=TEMPLATE), 400)


def stories():
    return load_tokenizer(SHARED / "models" / "stories260K")


def gpt2():
    from transformers import GPT2TokenizerFast

    folder = SHARED / "data" / "gpt2_tokenizer"
    return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.fixture(
    params=[built_in, stories, gpt2],
    ids=lambda make: make.__name__,
    scope="module",
    name="tokenizer",
)
def each_tokenizer(request):
    """In the place of the tiny model's tokenizer, where a test module imports it."""
    if request.param is not built_in and not SHARED.is_dir():
        pytest.skip("no ../shared")
    return request.param()


# "▁" stands for a blank in stories260K, and the special tokens hold "<".
printable = st.characters(exclude_categories=["Cs"], exclude_characters="▁<")
texts = st.text(printable, max_size=30).map(str.strip).filter(bool)


def row(encoded, i=0):
    """Prompt tokens, answer tokens."""
    table = encoded.table
    start, end = table.prompt_lengths[i], table.lengths[i]
    return table.tokens[i, :start].tolist(), table.tokens[i, start:end].tolist()
