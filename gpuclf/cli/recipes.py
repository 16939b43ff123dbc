"""What the command line trains and searches: one recipe a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import typer

from gpuclf.cli.options import ModelName

__all__ = ["FINAL_EPOCHS", "RECIPES", "Recipe", "augmentation", "given", "refuse_foreign"]

FINAL_EPOCHS = 10  # of the training after a search
# Parameters that options name otherwise.
_OPTIONS = {"max_iter": "epochs", "n_neighbors": "neighbors"}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained and searched where no option says otherwise.

    Attributes
    ----------
    classifier : str
        Its name in gpuclf.
    training, candidate : dict
        Settings to train with, and to train candidates of a search with.
    space, mean_image_space : dict
        Where a search's candidates differ; the second where pixels are not scaled.
    flips : bool
        Whether half of CIFAR-10's images are mirrored in training.
    """

    classifier: str
    training: dict[str, Any]
    candidate: dict[str, Any]
    space: dict[str, Any]
    mean_image_space: dict[str, Any] = field(default_factory=dict)
    flips: bool = False

    @property
    def by_gradients(self) -> bool:
        """Whether the model is trained by gradients."""
        return "max_iter" in self.training

    def make(self, settings: dict[str, Any]) -> Any:
        """Return a classifier with these hyper-parameters."""
        import gpuclf

        return getattr(gpuclf, self.classifier)(**settings)


# Settings, ranges and epochs were chosen on CIFAR-10's validation images, those of a search for two
# minutes on two cores. Of pixels s times as large, a linear model wants 1/s^2 of the learning rate
# and s^2 of the penalty; s = 64.
RECIPES = {
    ModelName.softmax: Recipe(
        "SoftmaxClassifier",
        training={"max_iter": 10},
        candidate={"max_iter": 3},
        space={"learning_rate": (1e-4, 1e-1), "reg": (1e-5, 1e0)},
        mean_image_space={"learning_rate": (2.5e-8, 2.5e-5), "reg": (4e-2, 4e3)},
    ),
    ModelName.svm: Recipe(
        "LinearSVMClassifier",
        training={"max_iter": 10},
        candidate={"max_iter": 3},
        space={"learning_rate": (1e-5, 1e-2), "reg": (1e-4, 1e1)},
        mean_image_space={"learning_rate": (2.5e-9, 2.5e-6), "reg": (4e-1, 4e4)},
    ),
    ModelName.two_layer: Recipe(
        "TwoLayerNetClassifier",
        training={"max_iter": 6, "hidden_size": 512, "batch_size": 256},
        candidate={"max_iter": 2, "hidden_size": 100},
        space={"learning_rate": (5e-3, 5e-1), "reg": (1e-6, 1e-2)},
        mean_image_space={"learning_rate": (1e-5, 1e-3), "reg": (1e-4, 1e1)},
        flips=True,
    ),
    ModelName.knn: Recipe(
        "KNeighborsClassifier",
        training={"n_neighbors": 5, "metric": "l2"},
        candidate={"metric": "l2"},
        space={"n_neighbors": [1, 3, 5, 8, 10, 12, 15, 20, 50, 100]},
    ),
}


def augmentation(flips: bool, shift: int | None, dataset: Any) -> tuple[Any, str | None]:
    """Return what augments the images of a data set in training, and what to call it."""
    from gpuclf.augment import horizontal_flip, in_turn, random_shift

    if not flips and shift is None:
        return None, None
    if dataset.image_shape is None:
        raise typer.BadParameter(
            f"--{'flip' if flips else 'shift'} is for images, and the samples of {dataset.source} "
            "are rows of numbers: leave it out, or store images with three or four axes"
        )
    shape = tuple(dataset.image_shape)
    steps: dict[str, Callable[[Any, Any], Any]] = {}
    if flips:
        steps["horizontal_flip"] = partial(horizontal_flip, image_shape=shape)
    if shift is not None:
        moved = partial(random_shift, image_shape=shape, pixels=shift)
        steps[f"random_shift of {shift}"] = moved
    augments = tuple(steps.values())
    together = augments[0] if len(augments) == 1 else partial(in_turn, steps=augments)
    return together, ", then ".join(steps)


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given; names of choices become plain text."""
    return {
        name: str(value) if isinstance(value, str) else value
        for name, value in options.items()
        if value is not None
    }


def refuse_foreign(model: ModelName, options: Iterable[str], allowed: Iterable[str] = ()) -> None:
    """Raise for the first option that is no hyper-parameter of the model, nor allowed beside."""
    known = {*RECIPES[model].make({}).get_params(), *allowed}
    for name in options:
        if name not in known:
            option = _OPTIONS.get(name, name).replace("_", "-")
            raise typer.BadParameter(f"--{option} does not apply to {model}")
