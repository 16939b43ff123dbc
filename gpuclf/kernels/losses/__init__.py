"""The losses: scores to loss and gradient."""
