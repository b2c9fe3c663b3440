"""GPU kernels in Triton, for row-wise fused reductions and elementwise chains; imported by the operations alone.

These modules import Triton, so nothing imports them before a CUDA tensor needs them.
"""
