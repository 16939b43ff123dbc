"""Optimisers: mini-batch SGD of one model or of several together, and full-batch L-BFGS."""

from gpuclf.training.history import DivergedError, History, one_cycle
from gpuclf.training.lbfgs import LBFGSMember, minimize_lbfgs, train_lbfgs
from gpuclf.training.sgd import Member, epoch_runner, momentum_step, stacked, train_sgd

__all__ = [
    "DivergedError",
    "History",
    "LBFGSMember",
    "Member",
    "epoch_runner",
    "minimize_lbfgs",
    "momentum_step",
    "one_cycle",
    "stacked",
    "train_lbfgs",
    "train_sgd",
]
