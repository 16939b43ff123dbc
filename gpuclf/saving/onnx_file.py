"""Classifiers as ONNX graphs, which other programs run without this library."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import gpuclf
from gpuclf.arrays import to_host
from gpuclf.estimators.fleet_ensemble import FleetEnsemble
from gpuclf.estimators.gradient_classifier import GradientClassifier
from gpuclf.files import replace_whole
from gpuclf.models import LinearModel, TwoLayerNet

__all__ = ["save_onnx"]

# Old enough for the runtimes of some years, new enough for all operators below.
OPSET, IR_VERSION = 17, 8
INPUTS = ("uint8", "float32", "float64")


def save_onnx(model: Any, path: str | os.PathLike[str], input_dtype: str, layout: Any) -> None:
    """Write a classifier as an ONNX graph: see :meth:`gpuclf.SoftmaxClassifier.to_onnx`."""
    try:
        import onnx
    except ImportError:
        raise ImportError(
            "ONNX files need the package onnx, which is not installed: pip install onnx"
        ) from None
    members = _members(model)
    if input_dtype not in INPUTS:
        wanted = ", ".join(map(repr, INPUTS))
        raise ValueError(f"input_dtype must be one of {wanted}, got {input_dtype!r}")
    graph = _Graph(onnx, model, input_dtype)
    rows = graph.add_input(layout)
    outputs = [graph.add_scores(to_host(member), rows) for member in members]
    has_logits = all(member.model.has_logits for member in members)
    if has_logits:
        outputs = [
            (score, graph.node("Softmax", score, axis=-1), dtype) for score, _, dtype in outputs
        ]
    dtypes = {dtype for _, _, dtype in outputs}
    assert len(dtypes) == 1  # of members fitted together
    ranked, shown, dtype = outputs[0]
    if len(outputs) > 1:
        # Not by Mean, which onnxruntime does not have for float64.
        for _, other, _ in outputs[1:]:
            shown = graph.node("Add", shown, other)
        count = graph.constant(np.array(len(outputs), dtype), "count")
        ranked = shown = graph.node("Div", shown, count)
    graph.add_outputs(ranked, shown, "probabilities" if has_logits else "scores", dtype)
    made = graph.finish()
    onnx.checker.check_model(made, full_check=True)
    replace_whole(Path(path), made.SerializeToString())


def _members(model: Any) -> list[Any]:
    """Return the classifiers whose scores or probabilities are averaged."""
    members = [model]
    if isinstance(model, FleetEnsemble):
        if not model._is_soft():
            raise TypeError("a hard vote has no ONNX form here: save one of estimators_ instead")
        members = model.estimators_
    for member in members:
        if not isinstance(member, GradientClassifier) or not isinstance(
            member.model, LinearModel | TwoLayerNet
        ):
            raise TypeError(
                f"{type(member).__name__} cannot be written as an ONNX graph: SoftmaxClassifier, "
                "LinearSVMClassifier, TwoLayerNetClassifier and soft votes of them can. "
                "model.save(path) keeps any classifier of gpuclf"
            )
    return members


class _Graph:
    """An ONNX graph that grows."""

    def __init__(self, onnx: Any, model: Any, input_dtype: str) -> None:
        self._onnx, self._model, self._input_dtype = onnx, model, input_dtype
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._casts: dict[str, str] = {}
        self._outputs: list[Any] = []

    def node(self, kind: str, *inputs: str, output: str | None = None, **options: Any) -> str:
        """Add an operation and return the name of its result."""
        name = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [name], **options))
        return name

    def constant(self, value: np.ndarray, name: str) -> str:
        name = f"{name}_{len(self._constants)}"
        self._constants[name] = self._onnx.numpy_helper.from_array(
            np.ascontiguousarray(value), name
        )
        return name

    def type_of(self, dtype: Any) -> int:
        if np.dtype(dtype).kind in "UO":
            return int(self._onnx.TensorProto.STRING)
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def add_input(self, layout: str | None) -> str:
        n_features = self._model.n_features_in_
        shape, axes = ["N", n_features], None
        if layout is not None:
            image_shape = getattr(self._model, "image_shape_", None)
            if layout not in ("NCHW", "NHWC"):
                raise ValueError(f"layout must be 'NCHW', 'NHWC' or None, got {layout!r}")
            if image_shape is None:
                raise ValueError(
                    "layout is for images, and the model does not know their shape: set "
                    "model.image_shape_ = (channels, height, width), or leave layout out"
                )
            channels, height, width = image_shape
            axes = (0, 3, 1, 2) if layout == "NHWC" else None
            shape = ["N", channels, height, width]
            shape = ["N", height, width, channels] if axes else shape
        self._input = self._onnx.helper.make_tensor_value_info(
            "X", self.type_of(self._input_dtype), shape
        )
        rows = "X"
        if axes:
            rows = self.node("Transpose", rows, perm=axes)
        if layout is not None:
            target = self.constant(np.array([-1, n_features]), "shape")
            rows = self.node("Reshape", rows, target)
        return rows

    def add_scores(self, member: Any, rows: str) -> tuple[str, str, np.dtype[Any]]:
        """Add the scores of one classifier; return their name twice, and their dtype."""
        params = {name: np.asarray(value) for name, value in member.params_.items()}
        dtype = next(iter(params.values())).dtype
        x = rows
        if self._input_dtype != dtype:
            if dtype.name not in self._casts:
                self._casts[dtype.name] = self.node("Cast", rows, to=self.type_of(dtype))
            x = self._casts[dtype.name]
        if member.mean_ is not None:
            mean = self.constant(member.mean_.astype(dtype), "mean")
            factor = self.constant((1 / member.scale_).astype(dtype), "inverse_scale")
            x = self.node("Mul", self.node("Sub", x, mean), factor)
        names = {name: self.constant(value, name) for name, value in params.items()}
        if isinstance(member.model, TwoLayerNet):
            hidden = self.node("Add", self.node("MatMul", x, names["W1"]), names["b1"])
            x = self.node("Relu", hidden)
            names = {"W": names["W2"], "b": names["b2"]}
        scores = self.node("MatMul", x, names["W"])
        if "b" in names:
            scores = self.node("Add", scores, names["b"])
        return scores, scores, dtype

    def add_outputs(self, ranked: str, shown: str, name: str, dtype: np.dtype[Any]) -> None:
        classes = self._model.classes_
        labels = classes.astype(object) if classes.dtype.kind in "UO" else classes
        number = self.node("ArgMax", ranked, axis=-1, keepdims=0)
        self.node("Gather", self.constant(labels, "classes"), number, output="label")
        self.node("Identity", shown, output=name)
        make = self._onnx.helper.make_tensor_value_info
        self._outputs = [
            make("label", self.type_of(classes.dtype), ["N"]),
            make(name, self.type_of(dtype), ["N", len(classes)]),
        ]

    def finish(self) -> Any:
        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes, type(self._model).__name__, [self._input], self._outputs,
            [*self._constants.values()],
        )  # fmt: skip
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
            producer_name="gpuclf", producer_version=gpuclf.__version__,
        )  # fmt: skip
        names = getattr(self._model, "class_names_", None)
        if names is not None:
            helper.set_model_props(made, {"class_names": json.dumps(list(names))})
        return made
