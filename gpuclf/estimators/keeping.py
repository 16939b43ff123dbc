"""How a fitted classifier is kept: saved, pickled, copied, and moved between devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Self

from sklearn.utils.validation import check_is_fitted

from gpuclf.arrays import Array, map_arrays, to_host

__all__ = ["ON_DEVICE", "Kept", "Saved"]

# What lives where the training samples did; all other arrays are NumPy's.
ON_DEVICE = ("params_", "_velocity", "_fit_X", "_y", "estimators_")


class Saved:
    """Can be written to a file."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learned to a file, which :func:`gpuclf.load` reads.

        The file is one of safetensors, written whole or not at all; the arrays in it can be read
        by other programs too. Nothing in it runs when it is loaded. Of a search, the best
        classifier is written.

        Parameters
        ----------
        path : str or path
            Any name; ".safetensors" tells other programs what it is.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        TypeError
            For a class of one's own, whose code is in no file: pickle it. Also for labels that no
            file can hold: fit with strings or numbers.

        Warns
        -----
        UserWarning
            If a hyper-parameter cannot be stored, such as a function of one's own for `augment`;
            the file has its default instead.
        """
        from gpuclf.saving.models import save

        check_is_fitted(self)
        save(self, path)


class Kept(Saved):
    """Can be moved and copied as well; pickles hold NumPy arrays, whatever trained the model."""

    def to_onnx(
        self,
        path: str | os.PathLike[str],
        *,
        input_dtype: str = "uint8",
        layout: str | None = None,
    ) -> None:
        """Write the classifier as an ONNX graph, which other programs run; needs the extra `onnx`.

        Parameters
        ----------
        path : str or path
            Usually with the ending ".onnx".
        input_dtype : {"uint8", "float32", "float64"}, default "uint8"
            Of the samples that the graph takes, unstandardised: the standardisation is inside.
        layout : {"NCHW", "NHWC"}, optional
            Of images that the graph takes; by default it takes rows (N, D), as `predict`.

        Raises
        ------
        TypeError
            For nearest neighbours and hard votes, which are no such graph.
        ImportError
            If the package onnx is missing.

        Notes
        -----
        The graph has the input X and the outputs `label` (N,), as `predict` gives, and
        `probabilities` (N, C), or `scores` where there are no probabilities. They are the
        library's but for rounding. Names of classes, where the model has them, are in the file's
        metadata as "class_names".

        Examples
        --------
        >>> model.to_onnx("model.onnx")  # doctest: +SKIP
        >>> session = onnxruntime.InferenceSession("model.onnx")  # doctest: +SKIP
        >>> label, probabilities = session.run(None, {"X": pixels})  # doctest: +SKIP
        """
        from gpuclf.saving.onnx_file import save_onnx

        check_is_fitted(self)
        save_onnx(self, path, input_dtype, layout)

    def map_arrays(self, function: Callable[[Array], Array]) -> Self:
        """Return a copy with `function` applied to what lives on the samples' device.

        With it :func:`gpuclf.to_device` and :func:`gpuclf.to_host` move a fitted classifier.
        """
        rest = {name: v for name, v in vars(self).items() if name not in ON_DEVICE}
        moved = {name: _mapped(v, function) for name, v in vars(self).items() if name in ON_DEVICE}
        return self._of(deepcopy(rest) | moved)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        on_device = {name: _mapped(state[name], to_host) for name in ON_DEVICE if name in state}
        return state | on_device

    # Copies within a process stay on the device: copy would otherwise go by way of __getstate__.

    def __copy__(self) -> Self:
        return self._of(vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = copied = self._of({})
        vars(copied).update(deepcopy(vars(self), memo))
        return copied

    def _of(self, attributes: dict[str, Any]) -> Self:
        made = object.__new__(type(self))
        vars(made).update(attributes)
        return made


def _mapped(value: Any, function: Callable[[Array], Array]) -> Any:
    if isinstance(value, list):
        return [map_arrays(item, function) for item in value]
    return None if value is None else map_arrays(value, function)
