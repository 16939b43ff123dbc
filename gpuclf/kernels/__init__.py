"""What replaces shared functions, a folder an operation: see :mod:`gpuclf.dispatch`."""
