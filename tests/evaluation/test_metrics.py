from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import log_loss, top_k_accuracy_score

from convert.evaluation import metrics
from convert.evaluation.metrics import calibration, differences, scores

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (200, 12)).astype(np.float32)
LABELS = np.where(RNG.random(200) < 0.5, LOGITS.argmax(1), RNG.integers(0, 12, 200))


@pytest.fixture(params=[10**9, 300], ids=["at once", "in pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "AT_ONCE", request.param)


@pytest.mark.usefixtures("pieces")
def test_accuracy_and_likelihood_are_those_of_scikit_learn() -> None:
    found = scores(LOGITS, LABELS)
    every = np.arange(12)
    assert found.top1 == pytest.approx(top_k_accuracy_score(LABELS, LOGITS, k=1, labels=every))
    assert found.top5 == pytest.approx(top_k_accuracy_score(LABELS, LOGITS, k=5, labels=every))
    probabilities = scipy.special.softmax(LOGITS.astype(np.float64), axis=1)
    assert found.nll == pytest.approx(log_loss(LABELS, probabilities, labels=every), rel=1e-12)
    assert 0.4 < found.top1 < found.top5 < 1


def test_of_equal_logits_the_first_class_counts() -> None:
    found = scores(np.zeros((7, 7), np.float32), np.arange(7))
    assert (found.top1, found.top5) == (pytest.approx(1 / 7), pytest.approx(5 / 7))


def test_top_5_says_nothing_about_five_classes() -> None:
    assert scores(LOGITS[:, :5], LABELS % 5).top5 is None


def test_the_calibration_error_is_that_of_guo_et_al() -> None:
    """By hand: three images in bin 15, (14/15, 1]; one in bin 8, (7/15, 8/15]; two on the upper edge of bin 6, 6/15."""
    confidences = np.array([0.95, 0.99, 1.0, 0.5, 0.4, 0.4])
    right = np.array([True, True, False, True, False, True])
    bins = calibration(confidences, right)
    assert [part.images for part in bins] == [0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 3]
    assert (bins[14].confidence, bins[14].accuracy) == (pytest.approx(0.98), pytest.approx(2 / 3))
    expected = (3 * (0.98 - 2 / 3) + 1 * 0.5 + 2 * 0.1) / 6
    logits = np.log(np.stack([confidences, 1 - confidences], 1) + 1e-30).astype(np.float32)
    # The last two would have their other class first, so they are given a third.
    logits = np.insert(logits, 2, -np.inf, axis=1)
    logits[4:] = np.log([0.4, 0.3, 0.3])
    assert scores(np.maximum(logits, -80), np.where(right, 0, 1)).ece == pytest.approx(expected, abs=1e-6)


def test_a_sigmoid_head_has_a_probability_for_each_class() -> None:
    found = scores(LOGITS, LABELS, sigmoid=True)
    wide = LOGITS.astype(np.float64)
    right = np.arange(12) == LABELS[:, None]
    loss = -np.where(right, scipy.special.log_expit(wide), scipy.special.log_expit(-wide)).sum(1)
    assert found.nll == pytest.approx(loss.mean(), rel=1e-12)
    assert found.top1 == scores(LOGITS, LABELS).top1
    confidence = sum(part.images * part.confidence for part in found.bins) / 200
    assert confidence == pytest.approx(scipy.special.expit(wide.max(1)).mean())


@pytest.mark.usefixtures("pieces")
def test_differences_of_logits() -> None:
    other = LOGITS + RNG.normal(0, 1, LOGITS.shape).astype(np.float32)
    found = differences(LOGITS, other)
    p, q = (scipy.special.softmax(values.astype(np.float64), axis=1) for values in (LOGITS, other))
    np.testing.assert_allclose(found.kl, scipy.stats.entropy(p, q, axis=1), rtol=1e-9)
    np.testing.assert_allclose(found.largest, np.abs(LOGITS.astype(float) - other).max(1))
    ordered = np.sort(LOGITS.astype(float), axis=1)
    np.testing.assert_allclose(found.margin[0], ordered[:, -1] - ordered[:, -2])
    assert found.relative_l2 == pytest.approx(np.linalg.norm(LOGITS.astype(float) - other) / np.linalg.norm(LOGITS))
    changed = found.first_class[0] != found.first_class[1]
    assert 10 < changed.sum() < 190
    assert (found.margin[0][changed] <= 2 * found.largest[changed]).all()
    exact = differences(LOGITS, LOGITS)
    assert (exact.relative_l2, exact.kl.max(), exact.largest.max()) == (0, 0, 0)


def test_the_divergence_of_a_sigmoid_head_is_summed_over_the_classes() -> None:
    other = LOGITS * np.float32(1.5)
    p, q = (scipy.special.expit(values.astype(np.float64)) for values in (LOGITS, other))
    expected = (scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)).sum(1)
    np.testing.assert_allclose(differences(LOGITS, other, sigmoid=True).kl, expected, rtol=1e-6)
