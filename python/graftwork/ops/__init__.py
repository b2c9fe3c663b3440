"""The operations: checked at the door, registered as ``torch.ops.graftwork.*``, native where the table says so.

One module a stem; ``python -m graftwork.ops.table`` prints which device and dtype runs natively.
"""

from __future__ import annotations

from graftwork.ops import lossless_delta as lossless_delta
from graftwork.ops._native import FallbackWarning as FallbackWarning
from graftwork.ops._native import isa_level as isa_level
from graftwork.ops._native import thread_limit as thread_limit

__all__ = ["FallbackWarning", "isa_level", "lossless_delta", "thread_limit"]
