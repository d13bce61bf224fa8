"""Tiny random models of every family in PyTorch transformers: the reference of the parity tests.

Sizes are small, so that a sampled sequence of 48 tokens is longer than every sliding window, and
every tensor is random, norms and biases included, so that none can be misread unnoticed.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

EPSILON = 1e-3  # larger than any released model's, so that it matters
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": EPSILON,
    # A padding token would be one whose embedding PyTorch never trains.
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 8
THETA = 500.0  # lower than any released model's, so that 48 positions turn every frequency
DYNAMIC_LENGTH = 32  # where `dynamic` and `longrope` begin to scale
FINAL_NORMS = ("model.norm.weight", "transformer.ln_f.weight", "gpt_neox.final_layer_norm.weight")
SHORT_FACTORS, LONG_FACTORS = [1.0, 1.1, 1.3, 1.4, 1.6, 1.9], [1.5, 2.0, 2.7, 3.5, 5.0, 8.0]


def rope(kind: str = "default", theta: float = THETA, **settings) -> dict:
    return {"rope_type": kind, "rope_theta": theta, **settings}


def _config(config_class: str, **settings) -> PreTrainedConfig:
    defaults = SMALL | {"rope_parameters": rope()}
    return getattr(transformers, config_class)(**defaults | settings)


def _gpt_neox(**settings) -> PreTrainedConfig:
    absent = ("num_key_value_heads", "rms_norm_eps")
    shape = {key: value for key, value in SMALL.items() if key not in absent}
    shape |= {"num_attention_heads": 2, "layer_norm_eps": EPSILON}
    return transformers.GPTNeoXConfig(**shape | settings)


def _gpt2(**settings) -> PreTrainedConfig:
    shape = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
    shape |= {"layer_norm_epsilon": EPSILON}
    ids = {name: SMALL[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return transformers.GPT2Config(**shape | ids | settings)


_llama = functools.partial(_config, "LlamaConfig")
_mistral = functools.partial(_config, "MistralConfig")
_qwen2 = functools.partial(_config, "Qwen2Config")
_qwen3 = functools.partial(_config, "Qwen3Config", head_dim=12)
_gemma = functools.partial(_config, "GemmaConfig", head_dim=12)
_gemma2 = functools.partial(
    _config,
    "Gemma2Config",
    num_hidden_layers=4,
    head_dim=12,
    query_pre_attn_scalar=20,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=4.0,
    sliding_window=WINDOW,
)
_gemma3 = functools.partial(
    _config,
    "Gemma3TextConfig",
    head_dim=12,
    query_pre_attn_scalar=20,
    sliding_window=WINDOW,
    rope_parameters={
        "sliding_attention": rope(theta=100.0),
        "full_attention": rope("linear", theta=5000.0, factor=8.0),
    },
)
_phi3 = functools.partial(_config, "Phi3Config")
_olmo2 = functools.partial(_config, "Olmo2Config")
_smollm3 = functools.partial(
    _config, "SmolLM3Config", num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0]
)

_YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
_LONGROPE = rope(
    "longrope",
    partial_rotary_factor=0.75,
    original_max_position_embeddings=DYNAMIC_LENGTH,
    short_factor=SHORT_FACTORS,
    long_factor=LONG_FACTORS,
)
_LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)

ZOO: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": _llama,
    "llama_biases": lambda: _llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama_linear": lambda: _llama(rope_parameters=rope("linear", factor=4.0)),
    "llama_dynamic": lambda: _llama(
        rope_parameters=rope("dynamic", factor=4.0), max_position_embeddings=DYNAMIC_LENGTH
    ),
    "llama_llama3": lambda: _llama(rope_parameters=_LLAMA3, head_dim=12),
    "llama_yarn": lambda: _llama(rope_parameters=rope("yarn", **_YARN)),
    "llama_yarn_betas": lambda: _llama(
        rope_parameters=rope(
            "yarn", **_YARN, attention_factor=0.8, beta_fast=4.0, beta_slow=0.5, truncate=False
        )
    ),
    "llama_yarn_mscale": lambda: _llama(
        rope_parameters=rope("yarn", **_YARN, mscale=1.4, mscale_all_dim=0.6)
    ),
    "mistral": lambda: _mistral(sliding_window=WINDOW, head_dim=12),
    "mistral_full": lambda: _mistral(sliding_window=None, tie_word_embeddings=True),
    "qwen2": _qwen2,
    "qwen2_window": lambda: _qwen2(
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    "qwen2_yarn": lambda: _qwen2(rope_parameters=rope("yarn", **_YARN)),
    "qwen3": lambda: _qwen3(tie_word_embeddings=True),
    "qwen3_bias": lambda: _qwen3(
        attention_bias=True, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "gemma": _gemma,
    "gemma_multi_query": lambda: _gemma(num_key_value_heads=1, attention_bias=True),
    "gemma2": _gemma2,
    "gemma2_uncapped": lambda: _gemma2(
        attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True
    ),
    "gemma3_text": lambda: _gemma3(num_hidden_layers=4, sliding_window_pattern=2),
    "gemma3_text_six": lambda: _gemma3(
        num_hidden_layers=6, attention_bias=True, rope_parameters=None, num_key_value_heads=1
    ),
    "phi3": lambda: _phi3(sliding_window=WINDOW),
    "phi3_longrope": lambda: _phi3(
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters=_LONGROPE,
        original_max_position_embeddings=DYNAMIC_LENGTH,
        tie_word_embeddings=True,
    ),
    "olmo2": _olmo2,
    "olmo2_biases": lambda: _olmo2(
        attention_bias=True, num_key_value_heads=4, tie_word_embeddings=True
    ),
    "gpt_neox": lambda: _gpt_neox(rope_parameters=rope(partial_rotary_factor=0.25)),
    "gpt_neox_serial": lambda: _gpt_neox(
        rope_parameters=rope(partial_rotary_factor=1.0),
        use_parallel_residual=False,
        tie_word_embeddings=True,
        attention_bias=False,
        hidden_act="gelu_new",
    ),
    "gpt2": lambda: _gpt2(n_inner=50),
    "gpt2_untied": lambda: _gpt2(n_layer=2, activation_function="gelu", tie_word_embeddings=False),
    "smollm3": lambda: _smollm3(tie_word_embeddings=True),
    "smollm3_window": lambda: _smollm3(
        use_sliding_window=True,
        sliding_window=WINDOW,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
}

LENGTH_DEPENDENT = ("llama_dynamic", "phi3_longrope")
"""Variants whose rotary frequencies depend on how long the sequence is."""
SEEDS = {
    "llama": 2,
    "llama_biases": 1,
    "llama_dynamic": 4,
    "llama_llama3": 1,
    "qwen2": 4,
    "qwen2_yarn": 1,
    "qwen3": 1,
    "qwen3_bias": 1,
    "gemma2": 13,
    "gemma3_text": 1,
    "phi3": 1,
    "olmo2_biases": 1,
    "gpt_neox_serial": 3,
    "gpt2": 1,
    "gpt2_untied": 1,
    "smollm3": 1,
    "smollm3_window": 1,
}
"""Seeds other than 0, chosen so that greedy text is varied and its choices are never close."""


def make(name: str, seed: int | None = None) -> PreTrainedModel:
    """A float32 model in eval mode with eager attention; every tensor random."""
    config = ZOO[name]()
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    rng = np.random.default_rng(SEEDS.get(name, 0) if seed is None else seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            _randomise(parameter_name, parameter, rng)
    model.generation_config.eos_token_id = None  # generates exactly as many tokens as asked
    return model.eval()


def _randomise(name: str, parameter: torch.nn.Parameter, rng: np.random.Generator) -> None:
    """Norms and biases: their initial zeros or ones with noise. Matrices: large enough to matter.

    The final norm scales by numbers of both signs: otherwise a tied head repeats its input token.
    """
    noise = torch.from_numpy(rng.standard_normal(parameter.shape, dtype=np.float32))
    if name in FINAL_NORMS:
        parameter += noise - 1
    elif parameter.ndim == 1:
        parameter += 0.3 * noise
    else:
        is_table = any(part in name for part in ("embed", "wte", "wpe", "lm_head"))
        parameter.copy_((0.4 if is_table else 1.0 / math.sqrt(fan_in(parameter))) * noise)


def fan_in(matrix: torch.Tensor) -> int:
    """The smaller side: near enough to the inputs of any projection here, in either layout."""
    return min(matrix.shape)


def random_tokens(rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Token ids int32 [rows, length]."""
    return np.random.default_rng(seed).integers(0, SMALL["vocab_size"], (rows, length), np.int32)
