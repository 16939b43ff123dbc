"""Pictures of results; needs matplotlib (the ``plots`` extra).

Every function draws into the Axes that it is given, or into a new figure, and returns the Axes:
``plot_history(history).figure.savefig("loss.png")``.
"""

from gpuclf.plots.ladder import plot_ladder
from gpuclf.plots.predictions import plot_confusion_matrix, plot_decision_boundary

__all__ = ["plot_confusion_matrix", "plot_decision_boundary", "plot_ladder"]
