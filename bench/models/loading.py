"""transformers models from local folders, never from the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.models.installed import require

INSTALL = "pip install 'graftwork[hf]'"


def transformers_offline() -> Any:
    """The transformers module, imported with every download switched off and with its chatter silenced.

    Raises
    ------
    MissingExtra
        If transformers is not installed.
    """
    require("transformers", install=INSTALL)
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


def from_folder(folder: Path, architecture: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Load (model in eval mode, tokenizer) of a Hugging Face folder.

    Parameters
    ----------
    folder : Path
        A folder as ``save_pretrained`` writes it.
    architecture : str
        The transformers class that opens it, for instance ``"AutoModelForCausalLM"``.
    dtype : str
        The floating-point type that the weights are converted to.
    """
    transformers = transformers_offline()
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
