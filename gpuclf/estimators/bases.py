"""scikit-learn's base classes, with types: it has none itself.

With a base class that is Any, a type checker would check no call of a subclass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Self

__all__ = [
    "BaseEstimator",
    "BaseSearchCV",
    "CallbackSupportMixin",
    "ClassifierMixin",
    "torn_down_after",
]

if TYPE_CHECKING:
    Request = bool | str | None

    class BaseEstimator:
        """What users call of sklearn.base.BaseEstimator."""

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...  # noqa: D102
        def set_params(self, **params: Any) -> Self: ...  # noqa: D102
        def get_metadata_routing(self) -> Any: ...  # noqa: D102
        def set_fit_request(self, **requests: Request) -> Self: ...  # noqa: D102
        def set_partial_fit_request(self, **requests: Request) -> Self: ...  # noqa: D102
        def set_score_request(self, **requests: Request) -> Self: ...  # noqa: D102
        def __sklearn_tags__(self) -> Any: ...
        def __getstate__(self) -> dict[str, Any]: ...

    class ClassifierMixin:
        """What sklearn.base.ClassifierMixin builds on."""

        def predict(self, X: Any) -> Any: ...  # noqa: D102

    class BaseSearchCV(BaseEstimator):
        """What users call of sklearn.model_selection._search.BaseSearchCV."""

        best_estimator_: Any
        best_score_: float
        best_params_: dict[str, Any]
        classes_: Any
        n_features_in_: int
        estimator: Any

        def score(self, X: Any, y: Any = None, **params: Any) -> float: ...  # noqa: D102
        def score_samples(self, X: Any) -> Any: ...  # noqa: D102
        def predict(self, X: Any) -> Any: ...  # noqa: D102
        def predict_proba(self, X: Any) -> Any: ...  # noqa: D102
        def predict_log_proba(self, X: Any) -> Any: ...  # noqa: D102
        def decision_function(self, X: Any) -> Any: ...  # noqa: D102
        def _format_results(self, *args: Any) -> dict[str, Any]: ...

    class CallbackSupportMixin:
        """What users call of sklearn.callback.CallbackSupportMixin."""

        def set_callbacks(self, *callbacks: Any) -> Self: ...  # noqa: D102
        def _init_callback_context(self, *args: Any, **options: Any) -> Any: ...

    def torn_down_after(estimator: Any) -> AbstractContextManager[None]: ...  # noqa: D103

else:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection._search import BaseSearchCV

    try:
        from sklearn.callback import CallbackSupportMixin
        from sklearn.callback._callback_support import (
            callback_management_context as torn_down_after,
        )
    except ImportError:  # before scikit-learn 1.9: without set_callbacks, none can be set

        class CallbackSupportMixin:
            """Stands for scikit-learn's, where there is none."""

        def torn_down_after(estimator):
            """Return a context in which there are no callbacks."""
            return nullcontext()
