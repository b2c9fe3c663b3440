"""Quantised deltas: a few bits a weight, or a few weights; packed, added to a base, multiplied with."""

from __future__ import annotations

from graftwork.ops.quantized_delta.bits import pack_bits as pack_bits
from graftwork.ops.quantized_delta.bits import unpack_bits as unpack_bits
from graftwork.ops.quantized_delta.dequantize import dequant_add as dequant_add
from graftwork.ops.quantized_delta.dequantize import dequantize as dequantize
from graftwork.ops.quantized_delta.formats import PackedDelta as PackedDelta
from graftwork.ops.quantized_delta.formats import PackFormat as PackFormat
from graftwork.ops.quantized_delta.gptq import GptqResult as GptqResult
from graftwork.ops.quantized_delta.gptq import dequantize_grouped as dequantize_grouped
from graftwork.ops.quantized_delta.gptq import gptq_quantize as gptq_quantize
from graftwork.ops.quantized_delta.gptq import grouped_order as grouped_order
from graftwork.ops.quantized_delta.gptq_factor import GptqFactor as GptqFactor
from graftwork.ops.quantized_delta.gptq_factor import accumulate_hessian as accumulate_hessian
from graftwork.ops.quantized_delta.linear import PackList as PackList
from graftwork.ops.quantized_delta.linear import delta_linear as delta_linear
from graftwork.ops.quantized_delta.lowrank import FACTOR_FORMATS as FACTOR_FORMATS
from graftwork.ops.quantized_delta.lowrank import LowRankGroup as LowRankGroup
from graftwork.ops.quantized_delta.lowrank import LowRankPack as LowRankPack
from graftwork.ops.quantized_delta.lowrank import rank_for_bpw as rank_for_bpw
from graftwork.ops.quantized_delta.lowrank import resolve_groups as resolve_groups
from graftwork.ops.quantized_delta.lowrank_add import lowrank_dequant_add as lowrank_dequant_add
from graftwork.ops.quantized_delta.lowrank_quantize import lowrank_quantize as lowrank_quantize
from graftwork.ops.quantized_delta.quantize import delta_quantize as delta_quantize
from graftwork.ops.quantized_delta.sparse import SparsePack as SparsePack
from graftwork.ops.quantized_delta.sparse import sparse_add_ as sparse_add_
from graftwork.ops.quantized_delta.sparse import sparse_quant as sparse_quant
from graftwork.ops.quantized_delta.svd import SingularTriples as SingularTriples
from graftwork.ops.quantized_delta.svd import rank_for_energy as rank_for_energy
from graftwork.ops.quantized_delta.svd import svd_delta as svd_delta
