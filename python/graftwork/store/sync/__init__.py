"""Weight sync: send what changed between two versions of a model, and apply it in place, all of it or nothing.

``encode`` makes a payload, ``apply_`` applies it, ``inspect`` says what it holds. ``export_sparse`` and
``import_sparse`` speak the form of indices and values that training frameworks exchange. The wire form is
specified in ``docs/weight-sync.md``.
"""

from __future__ import annotations

from graftwork.store.sync.apply import apply_
from graftwork.store.sync.encode import encode
from graftwork.store.sync.payload import SyncReport, inspect
from graftwork.store.sync.sparse_form import export_sparse, import_sparse

__all__ = ["SyncReport", "apply_", "encode", "export_sparse", "import_sparse", "inspect"]
