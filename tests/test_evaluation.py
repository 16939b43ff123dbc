import numpy as np
import pytest
from sklearn import metrics

from gpuclf.evaluation import calibration, confusion_matrix, precision_and_recall

RNG = np.random.default_rng(0)
Y_TRUE, Y_PRED = RNG.integers(0, 5, (2, 400))


def test_counts_and_shares_are_scikit_learn_s():
    counts = confusion_matrix(Y_TRUE, Y_PRED, 5)
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(Y_TRUE, Y_PRED))
    precision, recall = precision_and_recall(counts)
    expected = metrics.precision_recall_fscore_support(Y_TRUE, Y_PRED)
    np.testing.assert_allclose(precision, expected[0], rtol=1e-15)
    np.testing.assert_allclose(recall, expected[1], rtol=1e-15)


def test_a_class_that_does_not_occur_has_no_share():
    counts = confusion_matrix(np.array([0, 0]), np.array([0, 1]), 3)
    precision, recall = precision_and_recall(counts)
    np.testing.assert_array_equal(precision, [1, 0, np.nan])
    np.testing.assert_array_equal(recall, [0.5, np.nan, np.nan])


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ([0, 1], [0], r"both have shape \(N,\), got \(2,\) and \(1,\)"),
        ([0, 3], [0, 1], r"y_true must be in 0..2, got 0..3"),
        ([0, 1], [-1, 1], r"y_pred must be in 0..2, got -1..1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(true, predicted, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(true), np.array(predicted), 3)


def calibration_in_loops(probabilities, y, n_bins):
    """Equation 3 of Guo et al., bin by bin, sample by sample."""
    error = 0.0
    for m in range(n_bins):
        low, high = m / n_bins, (m + 1) / n_bins
        inside = [i for i, p in enumerate(probabilities) if low < max(p) <= high]
        if inside:
            accuracy = sum(int(np.argmax(probabilities[i])) == y[i] for i in inside) / len(inside)
            confidence = sum(max(probabilities[i]) for i in inside) / len(inside)
            error += len(inside) / len(y) * abs(accuracy - confidence)
    return error


@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_loops(n_bins):
    probabilities = RNG.dirichlet(np.full(4, 0.5), 300)
    y = RNG.integers(0, 4, 300)
    found = calibration(probabilities, y, n_bins)
    assert found.error == pytest.approx(calibration_in_loops(probabilities, y, n_bins), rel=1e-12)
    assert found.count.sum() == 300
    seen = found.count > 0
    assert np.isnan(found.accuracy[~seen]).all()
    width = 1 / n_bins
    assert (np.abs(found.confidence - (found.edges[:-1] + width / 2))[seen] <= width / 2).all()


def test_a_sure_and_right_model_is_calibrated_and_an_edge_belongs_to_the_bin_below():
    assert calibration(np.eye(3), np.arange(3)).error == 0
    found = calibration(np.array([[0.3, 0.7], [0.5, 0.5]]), np.array([1, 0]))
    assert found.count.tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0, 0]


def test_calibration_needs_samples_of_one_number():
    with pytest.raises(ValueError, match=r"at least one sample, got \(2, 3\) and \(3,\)"):
        calibration(np.zeros((2, 3)), np.zeros(3, int))
