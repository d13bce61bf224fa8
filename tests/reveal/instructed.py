"""A tiny language model whose answers depend on two words of instruction, in a known way.

An instruction is a word of each of two slots: 16 x 16 arms. Each word shifts how likely an answer
is toxic (made of the words x0, x1, ... instead of c0, c1, ...), and how likely each of its words is
the stock word of its kind instead of any. Both shifts are of the logit, and those of the two words
add up.
"""

import functools

import jax
import numpy as np
import optax
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jaxunlearn.data.rows import Text
from jaxunlearn.models import transformer
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.reveal.diversity import normalised_vendi_score
from jaxunlearn.reveal.reward import weighted_harmonic_mean

SLOT, KIND, LENGTH = 16, 24, 5
PROMPT = 4  # tokens: the first one, the two words, the question
ASKED = [f"q{i}" for i in range(8)]
QUESTIONS = [Text(word, "") for word in ASKED]
FIRST, SECOND = ([f"{slot}{i}" for i in range(SLOT)] for slot in "ab")
TOXIC, CLEAN = ([f"{kind}{i}" for i in range(KIND)] for kind in "xc")
WORDS = ["<pad>", "<s>", "</s>", *ASKED, *FIRST, *SECOND, *TOXIC, *CLEAN]
ID = {word: i for i, word in enumerate(WORDS)}
ARMS = [f"{one} {other}" for one in FIRST for other in SECOND]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def effects():
    """How likely an answer is toxic, and a word the stock word, by arm: two arrays [256]."""
    rng = np.random.default_rng(0)
    return tuple(
        sigmoid(base + 1.2 * (rng.normal(size=SLOT)[:, None] + rng.normal(size=SLOT))).ravel()
        for base in (-0.5, -1.0)
    )


def answers(rng, toxic, stock, shape):
    """Ids of words, [*shape, LENGTH], for probabilities that broadcast with the shape."""
    kind = np.where(rng.random(shape) < toxic, ID["x0"], ID["c0"])[..., None]
    free = rng.random((*shape, LENGTH)) >= np.asarray(stock)[..., None]
    return kind + np.where(free, rng.integers(KIND, size=(*shape, LENGTH)), 0)


def score(texts):
    """The share of toxic words."""
    shares = [[word[0] == "x" for word in text.answer.split()] for text in texts]
    return np.array([np.mean(share) if share else 0.0 for share in shares])


def embed(texts):
    """How often each word is in a text, [n, V]."""
    return np.array([[text.split().count(word) for word in TOXIC + CLEAN] for text in texts], float)


def true_rewards(toxic, stock, *, samples=32, batches=8):
    """What a pull of each arm is worth on the mean, [256], without any model."""
    rng = np.random.default_rng(99)
    return np.array(
        [
            np.mean([_reward(ids) for ids in answers(rng, *probs, (batches, samples))])
            for probs in zip(toxic, stock, strict=True)
        ]
    )


def _reward(ids):
    """Of answers [n, LENGTH]."""
    counts = (ids[..., None] == np.arange(ID["x0"], len(WORDS))).sum(axis=1)
    return weighted_harmonic_mean((ids < ID["c0"]).mean(), normalised_vendi_score(counts))


def tokenizer():
    made = Tokenizer(models.WordLevel(ID, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ID["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


CONFIG = DecoderConfig(
    vocab_size=len(WORDS), hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4,
    num_kv_heads=4, head_dim=16, max_positions=32, tie_embeddings=True,
)  # fmt: skip


def trained(toxic, stock, *, steps=600, batch=256):
    """A model that was trained on such answers."""
    params = transformer.init_params(CONFIG, jax.random.key(0))
    schedule = optax.cosine_decay_schedule(5e-3, steps)
    adam = optax.adam(schedule)

    def loss(params, rows):
        return -transformer.token_log_probs(CONFIG, params, rows)[:, PROMPT:].mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, moments, rows):
        value, grads = jax.value_and_grad(loss)(params, rows)
        updates, moments = adam.update(grads, moments)
        return optax.apply_updates(params, updates), moments, value

    rng, moments = np.random.default_rng(0), adam.init(params)
    for _ in range(steps):
        arm = rng.integers(len(ARMS), size=batch)
        before = np.stack(
            [
                np.full(batch, ID["<s>"]),
                ID["a0"] + arm // SLOT,
                ID["b0"] + arm % SLOT,
                ID["q0"] + rng.integers(len(QUESTIONS), size=batch),
            ],
            axis=1,
        )
        said = answers(rng, toxic[arm], stock[arm], (batch,))
        end = np.full((batch, 1), ID["</s>"])
        params, moments, value = step(params, moments, np.hstack([before, said, end]))
    print(f"training: {float(value):.3f} nats per token")
    return LanguageModel(CONFIG, params, tokenizer())
