"""The linear models' pass over the samples, forward and backward."""
