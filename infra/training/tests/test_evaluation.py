import numpy as np
import pytest
from sklearn import metrics

from millrace_training import evaluation

RNG = np.random.default_rng(5)
SCORE = np.round(RNG.uniform(0.01, 0.99, 3000), 2)  # with ties
LABEL = (RNG.uniform(size=3000) < SCORE).astype(np.int64)
SESSION = RNG.integers(0, 900, 3000)


def test_measures_are_those_of_scikit_learn() -> None:
    got = evaluation.evaluate(LABEL, SESSION, SCORE, 0.4, None, 50, 1)
    assert got["auc"].value == pytest.approx(metrics.roc_auc_score(LABEL, SCORE), abs=1e-12)
    assert got["log_loss"].value == pytest.approx(metrics.log_loss(LABEL, SCORE), abs=1e-12)
    assert got["brier"].value == pytest.approx(metrics.brier_score_loss(LABEL, SCORE), abs=1e-12)
    constant = np.full(3000, 0.4)
    assert got["baseline_log_loss"].value == pytest.approx(metrics.log_loss(LABEL, constant), abs=1e-12)


def test_weighted_auc_is_that_of_scikit_learn() -> None:
    weight = RNG.integers(0, 4, 3000).astype(np.float64)
    want = metrics.roc_auc_score(LABEL, SCORE, sample_weight=weight)
    assert evaluation.Ranked(LABEL, SCORE).auc(weight) == pytest.approx(want, abs=1e-12)


def test_calibration_tells_the_calibrated_from_the_shifted() -> None:
    good = evaluation.evaluate(LABEL, SESSION, SCORE, 0.5, None, 50, 1)
    bad = evaluation.evaluate(LABEL, SESSION, np.clip(SCORE + 0.2, 0, 0.999), 0.5, None, 50, 1)
    assert good["calibration_error"].value < 0.04 < bad["calibration_error"].value
    gap = good["calibration_gap"]
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < 0 < gap.high


def test_the_same_model_gains_nothing_over_itself_and_a_better_one_does() -> None:
    same = evaluation.evaluate(LABEL, SESSION, SCORE, 0.5, SCORE, 50, 1)
    assert same["champion_auc_gain"] == evaluation.Metric(0.0, 0.0, 0.0)
    noisy = np.clip(SCORE + RNG.normal(0, 0.3, 3000), 0.01, 0.99)
    better = evaluation.evaluate(LABEL, SESSION, SCORE, 0.5, noisy, 50, 1)
    for name in ("champion_auc_gain", "champion_log_loss_gain"):
        low = better[name].low
        assert low is not None
        assert low > 0


def test_sessions_are_drawn_whole() -> None:
    """Copies of each row in its session tell no more than the row, so the interval stays as wide."""
    once = evaluation.evaluate(LABEL, np.arange(3000), SCORE, 0.5, None, 300, 1)["log_loss"]
    copies = [np.repeat(a, 9) for a in (LABEL, np.arange(3000), SCORE)]
    many = evaluation.evaluate(copies[0], copies[1], copies[2], 0.5, None, 300, 1)["log_loss"]
    assert many.low == pytest.approx(once.low, abs=1e-9)
    assert many.high == pytest.approx(once.high, abs=1e-9)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(8)
    truth = -np.mean([p * np.log(p) + (1 - p) * np.log(1 - p) for p in np.linspace(0.05, 0.95, 20_001)])
    inside = 0
    for seed in range(200):
        p = rng.uniform(0.05, 0.95, 300)
        label = (rng.uniform(size=300) < p).astype(np.int64)
        m = evaluation.evaluate(label, np.arange(300), p, 0.5, None, 60, seed)["log_loss"]
        assert m.low is not None
        assert m.high is not None
        inside += m.low <= truth <= m.high
    assert 176 <= inside <= 199  # 95 % of 200, less what 60 resamples cost
