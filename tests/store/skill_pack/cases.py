"""Small bases and fine-tunes with every kind of tensor that a pack treats differently."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graftwork.store.skill_pack import SVD, CompressionPlan, Drop, Prune, Quantize, Raw, Sparse

State = dict[str, Tensor]

SHAPES = {
    "model.embed_tokens.weight": (50, 33),
    "model.layers.0.self_attn.q_proj.weight": (31, 33),
    "model.layers.0.mlp.up_proj.weight": (70, 33),
    "model.layers.0.mlp.up_proj.bias": (70,),
    "model.layers.0.mlp.experts.gate": (3, 24, 17),
    "model.norm.weight": (33,),
    "stem.conv.weight": (8, 3, 5, 3),
}

PLAN = CompressionPlan(
    {
        "@embedding": Prune(keep=0.2),
        "@attention": SVD(rank=9, bits=((2, 8), (3, 3), (None, 2))),
        "up_proj": Quantize(3, block=16),
        "@experts": SVD(energy=0.9, bits=((1, 16), (2, 4), (None, 3))),
        "@conv": Sparse("dare", keep=0.5, seed=7, value="int8"),
        "@norm": Raw("fp32"),
        "@bias": Quantize(4, "asym", block=0),
    }
)

EVERY = {
    "drop": Drop(),
    "raw": Raw("fp32"),
    "halves": Raw("fp16"),
    "sign": Quantize(1, block=-1),
    "asym": Quantize(4, block=8),
    "nf4": Quantize(4, "nf4", block=64, scale_dtype="fp32"),
    "svd": SVD(bpw=3.0),
    "prune": Prune(0.1, "int8"),
    "dare": Sparse("dare", keep=0.3, seed=1),
    "2:4": Sparse("2:4", value="fp16"),
}
"""A codec of each kind."""


def base_state(seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """Random weights, and a counter."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    return {**state, "steps": torch.arange(3)}


def tuned_state(base: State, seed: int = 1, size: float = 0.01) -> State:
    """The base with changes of this size; the counter stays."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor + size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }


def copied(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def same(one: State, other: State) -> bool:
    """Whether all words are equal, those of NaN and zero too."""
    return all(torch.equal(words(tensor), words(other[name])) for name, tensor in one.items())


def words(tensor: Tensor) -> Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.dtype.itemsize])


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.left, self.right, self.out = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor, scale: float = 1.0) -> Tensor:
        given = self.norm(hidden)
        return hidden + scale * self.out(torch.tanh(self.left(given)) * self.right(given))


class Net(nn.Module):
    """Blocks in a chain; ``apart`` puts an operation between them, so that they are none."""

    def __init__(self, *, width: int = 24, blocks: int = 3, apart: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(10, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 5)
        self.apart = apart

    def forward(self, given: Tensor) -> Tensor:
        hidden = self.first(given)
        for block in self.blocks:
            hidden = block(hidden * 1.0 if self.apart else hidden, scale=0.5)
        return self.head(hidden)


def net(seed: int = 0, **settings: bool) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(**settings)


def tuned_net(base: Net, size: float = 0.05, seed: int = 3) -> Net:
    """A copy with changed weights."""
    import copy

    tuned, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return tuned


def inputs(count: int = 4, seed: int = 5) -> list[Tensor]:
    """Batches whose features are correlated and of different size."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(10, 10, generator=generator) * torch.linspace(0.02, 2, 10)
    return [torch.randn(32, 10, generator=generator) @ mix for _ in range(count)]
