"""What config.json files mean: refused by key where they cannot be, one meaning for each."""

import pytest

from jaxunlearn.errors import UserError
from jaxunlearn.models.families import read_config
from jaxunlearn.models.rope import Linear, Rope

BASE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def read(model_type, **changes):
    base = GPT2 if model_type == "gpt2" else BASE
    return read_config({**base, "model_type": model_type, **changes}, "config.json")


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("llama", {"is_causal": False}, "is_causal is false"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ("llama", {"hidden_act": ["silu"]}, "hidden_act ['silu'] is not supported"),
        ("llama", {"rope_scaling": {"rope_type": []}}, "scaling [] is not supported"),
        ("llama", {"rope_theta": float("inf")}, "rope_theta must be a number above 0"),
        ("llama", {"num_hidden_layers": 10**30}, "num_hidden_layers must be at most"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_fast": "x"}}, "beta_"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "use_sliding_window is false"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": -1}, "max_window_layers"),
        ("qwen2", {"use_sliding_window": True, "layer_types": [[]] * 4}, "layer_types must be 4"),
        ("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window must be true or false"),
        ("smollm3", {"layer_types": ["sliding_attention"] * 4, "sliding_window": 8}, "no window"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers must be 4 times"),
        ("gemma2", {"sliding_window": None}, "sliding_window is null"),
        ("gemma2", {"attn_logit_softcapping": -1}, "attn_logit_softcapping must be a number"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types must be 4 times"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("mistral", {"sliding_window": 0}, "sliding_window must be a whole number of 1"),
        (
            "phi3",
            {"rope_scaling": {**LONGROPE, "long_factor": [1.0]}},
            "long_factor must be a list",
        ),
        ("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 0}, "original_max"),
        (
            "phi3",
            {"rope_scaling": LONGROPE, "original_max_position_embeddings": []},
            "original_max",
        ),
        ("gpt_neox", {"num_attention_heads": 5}, "hidden_size 32 must be a multiple of the 5"),
        ("gpt2", {"n_head": 5}, "hidden_size 32 must be a multiple of the 5 heads"),
        ("gpt2", {"num_attention_heads": 8}, "n_head 4 and num_attention_heads 8 differ"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ("mixtral", {"num_local_experts": 8}, "mixtral is a mixture-of-experts model"),
        ("deepseek_v3", {"n_routed_experts": 256}, "mixture-of-experts"),
        (["llama"], {}, "model_type ['llama'] is not supported; supported are: llama"),
    ],
)
def test_refused_by_key(model_type, changes, words):
    with pytest.raises(UserError) as caught:
        read(model_type, **changes)
    assert str(caught.value).startswith("config.json: ") and words in str(caught.value)


def test_what_has_no_effect_in_transformers_has_none_here():
    assert read("gpt2", head_dim=4, num_key_value_heads=2, hidden_act="relu") == read("gpt2")
    assert read("gpt_neox", num_key_value_heads=2) == read("gpt_neox", num_key_value_heads=4)
    assert read("gpt_neox", rope_theta=700.0) == read("gpt_neox")
    assert read("llama", rotary_pct=0.5, rotary_emb_base=100) == read("llama")
    assert read("llama", vision_config=None) == read("llama")


def test_rope_scaling_goes_before_rope_parameters():
    old = {"rope_type": "linear", "factor": 4.0}
    new = {"rope_type": "default", "rope_theta": 300.0}
    config = read("llama", rope_scaling=old, rope_parameters=new, rope_theta=500.0)
    assert config.kinds[0].rope == Rope(500.0, 8, Linear(4.0))


def test_a_window_that_is_null_is_none_and_one_that_is_missing_is_the_default():
    assert read("mistral", sliding_window=None).kinds[0].window is None
    assert read("mistral").kinds[0].window == 4096
    assert read("phi3").kinds[0].window is None
