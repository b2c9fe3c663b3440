"""The operations of :mod:`graftwork.ops.merge` in plain torch."""
