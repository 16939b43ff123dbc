"""Faster versions of shared functions, registered by library: see :mod:`gpuclf.dispatch`."""
