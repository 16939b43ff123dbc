"""Run the package's CUDA kernels on a CPU: the sources as they are, compiled by a C++ compiler.

The fixture ``cuda_on_cpu`` (tests/conftest.py) puts a :class:`CpuDevice` where
:mod:`gpuclf.kernels.building.cuda` would ask CuPy. The wrappers then work on NumPy arrays, so that
grids, argument order, types and reductions are tested along with the kernels.
"""

from .device import COPIES, ORDERS, CpuDevice, CudaOnCpuError, hidden, with_hidden_arrays
from .requirements import missing

__all__ = [
    "COPIES",
    "ORDERS",
    "CpuDevice",
    "CudaOnCpuError",
    "hidden",
    "missing",
    "with_hidden_arrays",
]
