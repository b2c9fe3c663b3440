"""Copy a stored fine-tune into a model that is in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.errors import StoreError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftwork.store.store import Store


def load_into(model: nn.Module, store: Store, name: str) -> None:
    """Copy entry ``name`` of ``store`` into ``model``; see `Store.load_into`."""
    import torch

    from graftwork.checkpoint.dtypes import code_of, torch_form

    targets = model.state_dict(keep_vars=True)
    entry = store.entry(name)
    faults = [f"{key}: the model has no such parameter" for key in entry.tensors if key not in targets]
    for key in entry.tensors.keys() & targets.keys():
        held, wanted = entry.tensors[key], targets[key]
        if torch_form(held.dtype, held.shape) != (wanted.dtype, tuple(wanted.shape)):
            found = f"{code_of(wanted.dtype)} {list(wanted.shape)}"
            faults.append(f"{key}: stored {held.dtype} {list(held.shape)}, model {found}")
    loaded = {_memory(targets[key]) for key in entry.tensors if key in targets}
    faults += [
        f"{key}: not in the entry, and tied to nothing that is"
        for key, tensor in targets.items()
        if key not in entry.tensors and _memory(tensor) not in loaded
    ]
    if faults:
        raise StoreError(
            f"entry {name!r} does not fit the model",
            file=store.path,
            got="; ".join(sorted(faults)[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else ""),
            remedy="build the model from the entry's own config and dtype",
        )
    with torch.no_grad():
        for key in entry.tensors:
            targets[key].copy_(store.tensor(name, key))


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
