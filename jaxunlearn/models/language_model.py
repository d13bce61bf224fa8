"""The bundle that a user holds: config, params, tokenizer, and where they came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxunlearn.data import tokens
from jaxunlearn.errors import UserError
from jaxunlearn.models.decoder_config import DecoderConfig
from jaxunlearn.models.int8 import with_float_kernels
from jaxunlearn.models.lora import Adapter, merge


@dataclass(frozen=True)
class LanguageModel:
    """A model and its tokenizer; `params` is the nested dict that the decoder takes, of arrays, and
    of `Int8` kernels if it was loaded so."""

    config: DecoderConfig
    params: Mapping[str, Any]
    tokenizer: Any = None
    """A transformers tokenizer; None when the folder had none."""
    adapter: Adapter | None = None
    hf_config: Mapping[str, Any] = field(default_factory=dict)
    """config.json as it was read; export starts from it."""
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    """Folder it was loaded from."""

    @property
    def lora(self) -> Mapping[str, Any] | None:
        """Scaled adapter factors for the decoder, or None."""
        return self.adapter and self.adapter.scaled

    def merged(self) -> "LanguageModel":
        """The same model with its adapter, if any, merged into the kernels that it adapts; these
        become floats."""
        if self.adapter is None:
            return self
        fields = {**self.__dict__, "params": merge(self.params, self.lora), "adapter": None}
        return LanguageModel(**fields)

    def plain(self) -> "LanguageModel":
        """The same model with its adapter merged and all kernels as floats."""
        model = self.merged()
        return replace(model, params=with_float_kernels(model.params))

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end an answer, as the generation config, config.json and the tokenizer say."""
        found = []
        for source in (self.generation_config, self.hf_config):
            ids = source.get("eos_token_id")
            ids = ids if isinstance(ids, list) else [ids]
            if not all(i is None or isinstance(i, int) for i in ids):
                raise UserError(
                    f"{self.folder}: eos_token_id must be a token id or a list of them, found {ids}"
                )
            found += ids
        if self.tokenizer is not None:
            found += tokens.stop_tokens(self.tokenizer)
        return tuple(sorted({i for i in found if i is not None}))
