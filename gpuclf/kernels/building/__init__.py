"""How machine code is made: by numba on the CPU, by NVRTC for CUDA."""
