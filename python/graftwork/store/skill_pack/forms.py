"""The codecs that a pack's file can have, by name."""

from __future__ import annotations

from graftwork.store.skill_pack.low_rank import LowRank
from graftwork.store.skill_pack.pieces import Dropped, Piece, Quantized, RawChange
from graftwork.store.skill_pack.scattered import Scattered

PIECES: dict[str, type[Piece]] = {
    piece.codec: piece for piece in (Dropped, RawChange, Quantized, LowRank, Scattered)
}
CODECS = tuple(PIECES)
