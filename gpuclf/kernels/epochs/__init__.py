"""Whole epochs of SGD, recorded on a CUDA device."""
