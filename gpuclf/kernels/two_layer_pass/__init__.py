"""The two-layer net's pass over the samples, forward and backward."""
