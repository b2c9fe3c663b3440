"""graftwork in fifteen lines: pack fine-tunes of one base, look inside, restore one.

``python examples/quickstart.py BASE FINETUNE STORE`` with two folders as Hugging Face writes them.
"""

from __future__ import annotations

import sys

from graftwork.store import diff, open_store, pack


def main(base: str, finetune: str, store: str) -> None:
    """Pack ``finetune`` against ``base`` into ``store``, and restore it beside the store."""
    packed = pack(base, {"chat": finetune}, out=store)
    entry = packed.entries[0]
    print(f"{entry.file_bytes:,} bytes stored in {entry.stored_bytes:,}")

    changed = diff(base, finetune).total
    print(f"{changed.changed_share:.1%} of the weights changed")

    opened = open_store(store, base=base)
    name = next(iter(opened.state_dict("chat")))
    print(name, opened.tensor("chat", name).shape)
    print(opened.checkout("chat", f"{store}-chat"))


if __name__ == "__main__":
    main(*sys.argv[1:])
