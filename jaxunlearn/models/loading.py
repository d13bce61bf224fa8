"""Loading a model by whatever names it: a folder, an adapter folder, or a Hub id."""

from pathlib import Path

from jaxunlearn.models.checkpoint_hf import Placement, Quantize, load_folder
from jaxunlearn.models.hub import model_folder
from jaxunlearn.models.language_model import LanguageModel
from jaxunlearn.models.peft_adapter import SETTINGS, load_adapter


def load_model(
    path: str | Path,
    *,
    dtype: str | None = None,
    placement: Placement | None = None,
    quantize: Quantize | None = None,
) -> LanguageModel:
    """Loads a Hugging Face model: a folder, or a Hub id such as `org/name`.

    A folder with an `adapter_config.json` is a PEFT adapter: its base is loaded and the adapter put
    beside it. A folder without tokenizer files gives a model whose `tokenizer` is None. Tensors
    are read one at a time, straight to their final dtype and device.

    Args:
      path: folder or Hub id.
      dtype: of the params; default: as in the file.
      placement: sharding of each leaf; default: all on the first device.
      quantize: "int8" loads the kernels of the layers (of an adapter's base) in a byte a weight, to
        train an adapter beside them; see `int8`.

    Raises:
      UserError: missing folder, no safetensors, unsupported model_type, a tensor that is missing,
        extra or of another shape or dtype than config.json says, or a damaged file; names the
        place.
    """
    folder = model_folder(path)
    load = load_adapter if (folder / SETTINGS).is_file() else load_folder
    return load(folder, dtype=dtype, placement=placement, quantize=quantize)
