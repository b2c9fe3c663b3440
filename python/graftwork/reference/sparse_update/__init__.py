"""Reference of the sparse updates: one module for each of `graftwork.ops.sparse_update`."""
