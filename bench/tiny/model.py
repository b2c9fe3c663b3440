"""A byte-level language model of about a million parameters, in the Llama layout.

Tensor names, arithmetic and ``config.json`` are those of transformers' ``LlamaForCausalLM``, so that a saved
folder opens there too and every tool that knows Llama's layers knows these.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork.checkpoint import open_checkpoint, write_checkpoint
from graftwork.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """The shape of a TinyLM; the vocabulary is the 256 bytes of UTF-8 text."""

    hidden_size: int = 128
    intermediate_size: int = 344
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    max_position_embeddings: int = 128
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    vocab_size: int = 256

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` that transformers reads."""
        rope = {"rope_type": "default", "rope_theta": self.rope_theta}
        return {
            **asdict(self),
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_key_value_heads": self.num_attention_heads,
            "hidden_act": "silu",
            "rope_parameters": rope,
        }


class TinyLM(nn.Module):
    """``logits = TinyLM(config)(tokens)``: int64 [batch, time] -> float32 [batch, time, vocabulary].

    Fresh weights are N(0, 0.02²) drawn from ``seed`` alone, whatever the global generator's state.
    """

    def __init__(self, config: TinyConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config = config or TinyConfig()
        self.model = _Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.model(tokens))

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy in nats per byte of ``tokens[:, 1:]`` given what precedes each."""
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write ``model.safetensors`` and ``config.json``; tied weights are stored once."""
        tensors = {name: tensor.detach().to(dtype) for name, tensor in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        config = self.config.to_hf() | {"dtype": str(dtype).removeprefix("torch.")}
        write_checkpoint(path, tensors, config=config)

    @classmethod
    def load(cls, path: str | Path) -> TinyLM:
        """The fp32 model of a folder that `save` wrote."""
        with open_checkpoint(path) as checkpoint:
            stored = checkpoint.config
            if stored is None:
                raise CheckpointError("a TinyLM needs its config.json", file=path)
            model = cls(TinyConfig(**{f.name: stored[f.name] for f in fields(TinyConfig)}))
            tensors = {name: checkpoint.tensor(name).float() for name in checkpoint.tensors}
            if model.config.tie_word_embeddings:
                tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
            model.load_state_dict(tensors)
        return model


class _Decoder(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        width = config.hidden_size // config.num_attention_heads
        frequencies = config.rope_theta ** (-torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(config.max_position_embeddings), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        time = tokens.shape[1]
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = layer(hidden, self.cos[:time], self.sin[:time])
        return self.norm(hidden)


class _Layer(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = _MLP(config)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class _Attention(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = (
            projection(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class _MLP(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, halves paired as in Llama."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin
