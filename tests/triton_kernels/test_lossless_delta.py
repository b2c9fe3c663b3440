"""The Triton kernels: the interpreter against the reference, and machine code for sm_80 and sm_90 without spills.

On a GPU, ``tests/ops`` runs the compiled kernels on the same cases.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graftwork.reference import lossless_delta as reference
from tests.generators.weights import SIZES, pair, random_words, special_pair
from tests.tolerances import assert_close
from tests.triton_kernels.interpreter import interpret

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

DTYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
SAVE_DTYPES = (torch.bfloat16, torch.float16)
SOME_BLOCKS = 10_007  # elements: two whole blocks and a rest

Case = tuple[Tensor, Tensor, torch.dtype]


def rounding_cases(save: torch.dtype) -> list[Case]:
    """Every positive value of the saved format, the midpoints between them, and their neighbours in fp32."""
    values = torch.arange(1 << 15, dtype=torch.int16).view(save).float()
    values = values[values.isfinite()]
    middle = ((values[:-1].double() + values[1:].double()) / 2).float()
    numbers = torch.cat([values, middle, middle.nextafter(values[1:]), -middle.nextafter(values[:-1])])
    return [(numbers.roll(1), numbers, save), (torch.zeros_like(numbers), numbers, save)]


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for save in SAVE_DTYPES:
        for dtype in DTYPES:
            of = f"{dtype} as {save}".replace("torch.", "")
            for numel in (*SIZES, SOME_BLOCKS):
                found[f"{of}, {numel} weights"] = (*pair(numel, dtype), save)
            bits = random_words((4097,), dtype, 1), random_words((4097,), dtype, 2)
            found[f"{of}, any bits"] = (*bits, save)
            found[f"{of}, specials"] = (*special_pair(dtype), save)
            found[f"{of}, out of range"] = (*(1e7 * part for part in pair(1000, dtype)), save)
        for k, case in enumerate(rounding_cases(save)):
            found[f"rounding to {save}, {k}".replace("torch.", "")] = case
    return found


CASES = cases()


@pytest.fixture(scope="module")
def interpreted() -> dict[str, tuple[Tensor, Tensor]]:
    return dict(zip(CASES, interpret("lossless_delta", "update_survival", list(CASES.values())), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_interpreter_agrees_with_the_reference(
    interpreted: dict[str, tuple[Tensor, Tensor]], case: str
) -> None:
    counts, sums = interpreted[case]
    wanted_counts, wanted_sums = reference.update_survival(*CASES[case])
    assert (counts.dtype, sums.dtype) == (torch.int64, torch.float64)
    assert counts.tolist() == wanted_counts.tolist()
    assert_close("update_survival.sums", sums, wanted_sums)


@pytest.mark.parametrize("save_bf16", [True, False], ids=["to_bf16", "to_fp16"])
@pytest.mark.parametrize("pointer", DTYPES.values())
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_spills(pointer: str, save_bf16: bool, capability: int) -> None:
    from graftwork.triton_kernels import lossless_delta as kernels
    from tests.triton_kernels.compile_only import compile_kernel

    resources = compile_kernel(
        kernels.update_survival_kernel,
        signature={"base": pointer, "tuned": pointer, "partials": "*fp64", "numel": "i64"},
        constants={"SAVE_BF16": save_bf16, "BLOCK": kernels.BLOCK},
        options=kernels.OPTIONS,
        capability=capability,
    )
    assert resources.stack == 0
    assert resources.registers <= 128  # two blocks of eight warps a multiprocessor, and more
