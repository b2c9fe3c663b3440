"""Reference of the quantised deltas: one module for each of `graftwork.ops.quantized_delta`."""
