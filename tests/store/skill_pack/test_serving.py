"""A model that is served answers each row as the row's pack, mounted alone, would."""

from __future__ import annotations

import contextlib
import copy
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork.errors import BaseMismatch, CheckpointError
from graftwork.store.skill_pack import SVD, CompressionPlan, Drop, Quantize, Raw, SkillPack, mount
from graftwork.store.skill_pack.serving import ServedModel, serve

VOCABULARY, WIDTH, LENGTH = 50, 32, 6
PLANS = (
    CompressionPlan({"norm|bias": Raw(), "": Quantize(1, block=0)}),
    CompressionPlan(
        {"norm|bias": Raw(), "embed": Quantize(4, block=32), "": SVD(rank=6, bits=((2, 8), (None, 4)))}
    ),
    CompressionPlan(
        {"norm|bias": Drop(), "embed": SVD(rank=4), "q_proj": Raw("fp32"), "": Quantize(3, block=16)}
    ),
    CompressionPlan(
        {"norm|bias": Quantize(8, block=0), "embed": Raw("fp16"), "mlp": Drop(), "": Quantize(8, "asym")}
    ),
)
ROWS = (0, None, 3, 1, 2, 1, -1)


class Block(nn.Module):
    """A layer with what language models have: norms of two kinds, biases, linear layers with and without."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Linear(WIDTH, WIDTH, bias=False)
        self.final_norm = nn.RMSNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.final_norm(x + self.mlp(torch.tanh(self.q_proj(self.norm(x)))))


class Model(nn.Module):
    """Tokens and positions, the same for all rows, to logits by the tied embedding."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.embed_positions = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.Sequential(Block(), Block())
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.lm_head.weight = self.embed.weight
        self.to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1])[None]
        return self.lm_head(self.layers(self.embed(tokens) + self.embed_positions(positions)))


def random_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(seed)
    return Model(dtype).eval()


def tuned_by(base: nn.Module, seed: int, size: float = 0.05) -> nn.Module:
    """A copy with all parameters changed."""
    generator = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += (size * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return tuned


def packs_for(base: nn.Module) -> list[SkillPack]:
    return [SkillPack.build(tuned_by(base, seed + 1), base, plan) for seed, plan in enumerate(PLANS)]


def tokens_for(rows: Sequence[Any], seed: int = 0) -> Tensor:
    return torch.randint(1, VOCABULARY, (len(rows), LENGTH), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def one_by_one(
    base: nn.Module, packs: Sequence[Any], rows: Sequence[int | None], *inputs: Tensor
) -> list[Tensor]:
    """Every row alone, with its pack mounted."""
    found = []
    for row, number in enumerate(rows):
        alone = number is None or number < 0
        with contextlib.nullcontext() if alone else mount(base, packs[number]):
            found.append(base(*(value[row : row + 1] for value in inputs)))
    return found


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1.2e-2), (torch.float16, 1.5e-3)]
)
def test_rows_are_as_with_their_pack_mounted(dtype: torch.dtype, bound: float) -> None:
    base = random_model(0, dtype)
    packs, tokens = packs_for(base), tokens_for(ROWS)
    wanted = torch.cat(one_by_one(base, packs, ROWS, tokens)).float()
    with serve(base, packs) as served:
        found = served(tokens, packs=ROWS)
        assert found.dtype == dtype
        assert not found.requires_grad
    assert (found.float() - wanted).abs().max() <= bound * wanted.abs().max()
    plain = base(tokens).detach().float()
    assert (plain - wanted)[[0, 2, 3, 4, 5]].abs().amax((1, 2)).min() > 4 * bound * wanted.abs().max()


def test_a_row_does_not_depend_on_the_others() -> None:
    """Beyond torch's own products, which alone may do so: none of them here."""
    base = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)).eval()
    packs = [
        SkillPack.build(tuned_by(base, seed), base, CompressionPlan({"": Quantize(2)})) for seed in (1, 2)
    ]
    rows, tokens = [0, 1, None, 0, 1], tokens_for(range(5))
    with serve(base, packs) as served:
        found = served(tokens, packs=rows)
        for row, number in enumerate(rows):
            assert torch.equal(served(tokens[row : row + 1], packs=[number])[0], found[row])


def test_names_scales_and_the_base() -> None:
    base = random_model()
    pack, tokens = packs_for(base)[0], tokens_for(range(3))
    scaled = [(pack, 1.0), (pack, 0.25)]
    wanted = torch.cat(one_by_one(base, scaled, [1, None, 0], tokens))
    with serve(base, {"law": pack, "a little law": (pack, 0.25)}) as served:
        assert served.names == ("law", "a little law")
        found = served(tokens, packs=["a little law", None, "law"])
        assert torch.equal(served(tokens, packs=[1, -1, 0]), found)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        for wrong in ("tax", 2, -2):
            with pytest.raises(KeyError, match=r"there is no pack"):
                served(tokens, packs=[wrong, None, None])
        alone = served(tokens, packs=[None] * 3)
    assert torch.equal(alone, base(tokens))


def test_the_model_is_as_before() -> None:
    base = random_model()
    modules = dict(base.named_modules())
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    served = serve(base, packs_for(base))
    assert list(base.state_dict()) == list(state), "the names of the parameters are the model's own"
    assert "packs=4" in repr(base)
    assert base.lm_head.weight is base.embed.weight
    served(tokens_for(ROWS), packs=ROWS)
    assert served.restore() is base
    assert dict(base.named_modules()) == modules
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.state_dict().items())
    served.restore()


def test_the_model_itself_may_be_the_layer() -> None:
    base = nn.Linear(8, 5).eval()
    pack = SkillPack.build(tuned_by(base, 1), base, CompressionPlan({"": Quantize(4, block=8)}))
    x = torch.randn(2, 8)
    with mount(base, pack):
        wanted = base(x).detach()
    with serve(base, [pack]) as served:
        torch.testing.assert_close(served(x, packs=[0, 0]), wanted)
        assert served(torch.randn(2, 3, 8), packs=[0, None]).shape == (2, 3, 5)
        assert served.model is not base
    assert served.model is base


def test_what_is_tied_in_the_pack_may_be_apart() -> None:
    base = random_model()
    pack = SkillPack.build(tuned_by(base, 1), base, CompressionPlan({"": Quantize(4, block=32)}))
    apart = copy.deepcopy(base)
    apart.lm_head.weight = nn.Parameter(apart.embed.weight.detach().clone())
    tokens = tokens_for(range(2))
    with serve(base, [pack]) as one, serve(apart, [pack]) as other:
        assert torch.equal(one(tokens, packs=[0, None]), other(tokens, packs=[0, None]))


def test_threads_have_batches_of_their_own() -> None:
    base = random_model()
    packs, tokens = packs_for(base), tokens_for(range(2))
    with serve(base, packs) as served:
        wanted = [served(tokens, packs=[number, None]) for number in range(4)]
        found: dict[int, Tensor] = {}

        def run(number: int) -> None:
            for _ in range(3):
                found[number] = served(tokens, packs=[number, None])

        threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(found[number], wanted[number]) for number in range(4))


def test_generate_with_a_transformers_model() -> None:
    """A batch with padding, greedily and with beams, against every row alone with its pack mounted."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (the extra `hf` brings it)"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_bias=True,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    base = transformers.LlamaForCausalLM(config).eval()
    packs = packs_for(base)
    tokens = tokens_for(ROWS)
    mask = torch.ones_like(tokens)
    tokens[3, :2] = mask[3, :2] = 0
    for options in ({}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        asked: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, **options}
        with serve(base, packs) as served:
            found = served.generate(tokens, attention_mask=mask, packs=ROWS, **asked)
        found = found.view(len(ROWS), -1, found.shape[-1])
        for row, number in enumerate(ROWS):
            alone = number is None or number < 0
            with contextlib.nullcontext() if alone else mount(base, packs[number]):
                only = base.generate(tokens[row : row + 1], attention_mask=mask[row : row + 1], **asked)
            assert torch.equal(found[row], only), (options, row)


def test_rows_must_be_named() -> None:
    base = random_model()
    with serve(base, packs_for(base)) as served:
        with pytest.raises(ValueError, match=r"nothing says which packs the rows belong to; call served"):
            base(tokens_for(range(2)))
        with pytest.raises(
            ValueError, match=r"embed: the first size of its input must be the 3 rows of the batch"
        ):
            served(tokens_for(range(2)), packs=[0, 1, 2])
        with served.rows([0, None], repeats=2) as model:
            assert model(tokens_for(range(4))).shape[0] == 4


def test_a_module_that_gives_no_batch() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).mean(0)

    base = nn.Sequential(Mean()).eval()
    pack = SkillPack.build(tuned_by(base, 1), base, CompressionPlan({"": Raw()}))
    with (
        serve(base, [pack]) as served,
        pytest.raises(ValueError, match=r"0: its result must be a tensor with the batch first"),
    ):
        served(torch.ones(3, 4), packs=[0, None, None])


class Odd(nn.Module):
    """Parameters of a module that has children."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))
        self.inner = nn.Linear(4, 4)


REFUSED: list[tuple[nn.Module, str, str]] = [
    (nn.ModuleDict({"conv": nn.Conv1d(3, 4, 2)}), "conv.weight", r"\[4, 3, 2\] of a Conv1d"),
    (nn.ModuleDict({"odd": Odd()}), "odd.gain", r"\[4\] of a Odd"),
    (nn.ModuleDict({"gru": nn.GRU(4, 4)}), "gru.weight_hh_l0", r"\[12, 4\] of a GRU"),
    (
        nn.ModuleDict({"attn": nn.MultiheadAttention(4, 1, bias=False)}),
        "attn.in_proj_weight",
        "of a MultiheadAttention",
    ),
    (nn.ModuleDict({"table": nn.Embedding(5, 4, max_norm=1.0)}), "table.weight", "of a Embedding"),
    (nn.ModuleDict({"wide": nn.Linear(4, 4).double()}), "wide.weight", r"torch.float64 \[4, 4\] of a Linear"),
]


@pytest.mark.parametrize(("base", "tensor", "what"), REFUSED, ids=[case[1] for case in REFUSED])
def test_what_cannot_be_served(base: nn.Module, tensor: str, what: str) -> None:
    base = base.eval()
    before = dict(base.named_modules())
    pack = SkillPack.build(tuned_by(base, 1), base, CompressionPlan({"": Quantize(8, block=0)}))
    with pytest.raises(CheckpointError, match="cannot be answered row by row") as raised:
        serve(base, [pack])
    assert raised.value.tensor == tensor
    assert re.search(what, str(raised.value.got))
    assert "mount this pack instead" in str(raised.value)
    assert dict(base.named_modules()) == before
    without = SkillPack.build(tuned_by(base, 1), base, CompressionPlan({"": Drop()}))
    with serve(base, [without]):
        assert dict(base.named_modules()) == before


def test_bad_arguments() -> None:
    base = random_model()
    packs = packs_for(base)
    with pytest.raises(ValueError, match="there must be a pack at least"):
        serve(base, [])
    with pytest.raises(
        TypeError, match="pack '0' must be a SkillPack, or a pair of one and its scale, got str"
    ):
        serve(base, ["pack.safetensors"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="the scale of pack 'a' must be a finite number, got nan"):
        serve(base, {"a": (packs[0], float("nan"))})
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        serve(copy.deepcopy(base).train(), packs)
    with pytest.raises(BaseMismatch, match="is not the base's"):
        serve(random_model(7), packs)
    assert isinstance(serve(random_model(7), packs, check_base=False), ServedModel)
    with pytest.raises(BaseMismatch, match="is not as the pack says"):
        serve(copy.deepcopy(base).bfloat16(), packs)
    with pytest.raises(BaseMismatch, match="lacks a tensor of the pack"):
        serve(base.layers, packs)
    with mount(base, packs[0]), pytest.raises(CheckpointError, match="packs are mounted on the model"):
        serve(base, packs)
    apart = copy.deepcopy(base)
    apart.lm_head.weight = nn.Parameter(apart.embed.weight.detach().clone())
    two = SkillPack.build(tuned_by(apart, 1), apart, PLANS[0])
    with pytest.raises(BaseMismatch, match="tied in the model are apart in the pack"):
        serve(base, [two])


def test_the_example() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (the extra `hf` brings it)")
    example = Path(__file__).parents[3] / "examples" / "serve_packs.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    learnt, same = done.stdout.splitlines()[-2:]
    assert learnt in ("5 of 6 rows are as their pack has learnt", "6 of 6 rows are as their pack has learnt")
    assert same == "7 of 7 rows are those of the packs mounted one by one"
