"""Pictures of results; needs matplotlib (the ``plots`` extra).

Every function draws into the Axes that it is given, or into a new figure, and returns the Axes:
``plot_history(history).figure.savefig("loss.png")``.
"""

from gpuclf.plots.drawing import import_pyplot
from gpuclf.plots.explanations import plot_explanation
from gpuclf.plots.images import plot_samples, plot_templates
from gpuclf.plots.ladder import plot_ladder
from gpuclf.plots.predictions import plot_confusion_matrix, plot_decision_boundary
from gpuclf.plots.runs import plot_runs
from gpuclf.plots.search import plot_search
from gpuclf.plots.training import plot_history, plot_knn_cross_validation

__all__ = [
    "import_pyplot",
    "plot_confusion_matrix",
    "plot_decision_boundary",
    "plot_explanation",
    "plot_history",
    "plot_knn_cross_validation",
    "plot_ladder",
    "plot_runs",
    "plot_samples",
    "plot_search",
    "plot_templates",
]
