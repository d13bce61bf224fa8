"""The shape of a decoder: every option that a model family needs."""

from dataclasses import dataclass
from typing import Literal

from jaxunlearn.models.rope import Rope

PLAIN_ROPE = Rope()


@dataclass(frozen=True)
class LayerKind:
    """In what the layers of one model differ from each other."""

    rope: Rope | None = PLAIN_ROPE  # None: the layer's attention knows no positions
    window: int | None = None  # a token sees this many tokens, itself included; None: all


PLAIN_KIND = LayerKind()


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder; hashable, so that it can be a static argument of ``jit``.

    The defaults are Llama's; every other value is there because a family needs it.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    kinds: tuple[LayerKind, ...] = (PLAIN_KIND,)
    kind_of_layer: tuple[int, ...] = ()  # index into `kinds`; empty: all layers are of the first
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # added to a norm's scale: Gemma's files hold scale - 1
    norm_before: bool = True  # attention and MLP read a normed residual stream
    norm_after: bool = False  # what attention and MLP return is normed
    qk_norm: Literal["head", "all"] | None = None  # of queries and keys: each head, or all as one
    attention_bias: bool = False  # of q, k and v
    output_bias: bool = False  # of o
    mlp_bias: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated: bool = True  # down(act(gate(x)) * up(x)); else down(act(up(x)))
    parallel: bool = False  # the MLP reads what attention reads, not what it made of it
    query_scale: float | None = None  # None: head_dim ** -0.5
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float | None = None
    learned_positions: bool = False
    tie_embeddings: bool = False
    soft_rows: int = 0  # embeddings of further ids after the vocabulary's, which no head predicts
    remat: str = "none"  # what the backward pass computes again: see `transformer.REMAT`
    attention: str = "xla"  # what computes it over whole texts; see `attention.attend_fused`
    dtype: str = "float32"  # of the computation; parameters keep their own

    def kind(self, layer: int) -> int:
        """Which of `kinds` a layer is."""
        return self.kind_of_layer[layer] if self.kind_of_layer else 0
