import math

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression

from rung.artifact.confidence import Calibration, of_decisions, tempered
from rung.errors import ConfigError
from rung.evaluation.calibration import (
    binomial_tail,
    calibration_error,
    coverage_curve,
    describe,
    fit,
    fit_each,
    fit_temperature,
    isotonic,
    proven_threshold,
    reliability,
    selective,
)


def sampled(rows, labels, temperature, seed=0):
    """Probabilities whose logits were sharpened: at this temperature they are the ones the truth was drawn from."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, labels)) * 2
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.array([random.choice(labels, p=p) for p in honest])
    return tempered(honest, 1 / temperature), truth


def nll(probabilities, truth, temperature):
    return -np.log(tempered(probabilities, temperature)[np.arange(len(truth)), truth]).mean()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_the_data_was_made_with_is_found(temperature):
    probabilities, truth = sampled(4000, 5, temperature)
    assert fit_temperature(probabilities, truth) == pytest.approx(temperature, rel=0.06)


def test_the_temperature_minimizes_the_negative_log_likelihood_as_scipy_does():
    from scipy.optimize import minimize_scalar

    probabilities, truth = sampled(300, 7, 2.0, seed=3)
    best = minimize_scalar(lambda t: nll(probabilities, truth, t), bounds=(0.1, 10), method="bounded").x
    assert fit_temperature(probabilities, truth) == pytest.approx(best, rel=1e-4)


def test_rows_that_are_all_right_change_nothing():
    assert fit_temperature(np.array([[0.6, 0.4], [0.3, 0.7]]), np.array([0, 1])) == 1.0


def test_a_temperature_stays_within_its_bounds():
    sure_and_wrong = np.array([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    assert fit_temperature(sure_and_wrong, np.array([1] * 5 + [0] * 5)) == pytest.approx(10.0)


def test_tempered_by_hand():
    assert tempered(np.array([[0.8, 0.2]]), 2.0) == pytest.approx(np.array([[2 / 3, 1 / 3]]))  # square roots: 2 to 1
    assert tempered(np.array([[1.0, 0.0]]), 2.0)[0, 0] == pytest.approx(1.0)


def test_isotonic_equals_scikit_learn():
    random = np.random.default_rng(1)
    scores = random.integers(0, 40, 500) / 40  # with ties
    right = random.random(500) < scores**2
    oracle = IsotonicRegression(out_of_bounds="clip").fit(scores, right)
    asked = np.linspace(-0.2, 1.2, 301)
    assert np.interp(asked, *zip(*isotonic(scores, right), strict=True)) == pytest.approx(
        oracle.predict(asked), abs=1e-12
    )


def test_isotonic_confidence_of_a_row():
    fitted = Calibration("isotonic", thresholds=((0.2, 0.1), (0.6, 0.5), (0.8, 0.5)))
    assert [fitted.of(p) for p in (0.0, 0.4, 0.7, 0.9)] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert fitted.scaled((0.9, 0.1)) == (0.9, 0.1)


def test_isotonic_refuses_few_rows():
    with pytest.raises(ConfigError) as caught:
        fit("isotonic", [[0.9, 0.1]] * 999, [0] * 999)
    assert caught.value.code == "too-few-rows"


def test_isotonic_fits_the_answers_own_probability():
    probabilities, truth = sampled(1500, 4, 2.0)
    fitted = fit("isotonic", probabilities, truth)
    probs = np.array([fitted.of(p) for p in probabilities.max(1)])
    right = probabilities.argmax(1) == truth
    assert probs.mean() == pytest.approx(right.mean(), abs=1e-9)  # least squares keeps the mean
    assert (np.diff(probs[np.argsort(probabilities.max(1))]) >= -1e-12).all()


def test_calibration_error_by_hand():
    # bins of a tenth: (0.4, 0.5] holds two rows, accuracy 1/2, confidence 0.5; (0.8, 0.9] one row, right, 0.9
    found = calibration_error([0.5, 0.5, 0.9], [1, 0, 1], bins=10)
    assert found.value == pytest.approx((2 * 0.0 + 1 * 0.1) / 3)


def test_bins_equal_those_of_scikit_learn():
    random = np.random.default_rng(2)
    probs = np.concatenate([random.random(400), np.arange(16) / 15])  # with values on the edges
    right = random.random(416) < probs
    accuracy, confidence = calibration_curve(right, probs, n_bins=15, strategy="uniform")
    bins = reliability(probs, right)
    assert [b.accuracy for b in bins] == pytest.approx(accuracy)
    assert [b.confidence for b in bins] == pytest.approx(confidence)
    by_hand = sum(b.rows * abs(b.accuracy - b.confidence) for b in bins) / 416
    assert calibration_error(probs, right).value == pytest.approx(by_hand)


def test_perfect_calibration_is_not_called_an_error():
    random = np.random.default_rng(4)
    probs = random.random(600)
    found = calibration_error(probs, random.random(600) < probs)
    assert found.p > 0.05
    assert found.low <= 0.02
    assert found.expected == pytest.approx(found.value, abs=0.02)


def test_overconfidence_is_found_and_its_size_covered():
    random = np.random.default_rng(5)
    true = random.random(2000) * 0.6 + 0.1
    found = calibration_error(true + 0.3, random.random(2000) < true)
    assert found.p < 0.001
    assert found.low <= 0.3 <= found.high


def test_the_interval_covers_the_true_error_in_most_draws():
    # every row is 0.1 too sure, so the true error is 0.1
    covered = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        true = random.random(300) * 0.5 + 0.3
        found = calibration_error(true + 0.1, random.random(300) < true, bins=5, resamples=300, seed=seed)
        covered += found.low <= 0.1 <= found.high
    assert covered >= 53


def test_a_confidence_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="outside"):
        calibration_error([1.2], [1])


def decided(rows, sharpened, seed=0):
    """Probabilities of three labels a row, made too sure by `sharpened`, the labels given and the true ones."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, 3)) * 2
    truth = random.random((rows, 3)) < 1 / (1 + np.exp(-logits))
    probs = 1 / (1 + np.exp(-logits * sharpened))
    return probs, probs >= 0.5, truth


def test_of_several_labels_the_temperature_of_the_decisions_is_found():
    probs, given, truth = decided(3000, 2.5)
    fitted = fit_each("temperature", probs, given, truth)
    assert fitted.temperature == pytest.approx(2.5, rel=0.08)
    honest, _, _ = decided(3000, 2.5 / fitted.temperature)
    assert np.array([fitted.scaled_each(row) for row in probs]) == pytest.approx(honest, rel=1e-9)


def test_of_several_labels_isotonic_maps_the_probability_of_the_whole_answer():
    probs, given, truth = decided(1200, 2.5)
    fitted = fit_each("isotonic", probs, given, truth)
    whole = of_decisions(probs, given)
    assert fitted.thresholds == isotonic(whole, (given == truth).all(1))
    assert fitted.scaled_each([0.2, 0.9]) == pytest.approx((0.2, 0.9), abs=0)
    with pytest.raises(ConfigError, match="needs 1000 validation rows, and there are 999"):
        fit_each("isotonic", probs[:999], given[:999], truth[:999])


def test_decisions_by_hand():
    assert of_decisions([0.4, 0.3], [False, True]) == pytest.approx(0.6 * 0.3)
    assert Calibration(temperature=2.0).scaled_each([0.8]) == (pytest.approx(2 / 3),)  # odds of 4 become those of 2


def test_coverage_by_hand():
    probs, right = [0.9, 0.8, 0.8, 0.4], [1, 0, 1, 0]
    assert coverage_curve(probs, right) == [(0.9, 0.25, 1.0), (0.8, 0.75, pytest.approx(2 / 3)), (0.4, 1.0, 0.5)]


def test_a_proven_threshold_by_hand():
    tail = binom.sf(97, 100, 0.95)  # of 98 right of 100
    assert binomial_tail(98, 100, 0.95) == pytest.approx(tail)
    assert tail > 0.05 / 3  # two wrong of 100 do not prove 95 %, none of 80 does
    probs = np.linspace(1, 0.5, 100)
    assert proven_threshold(probs, [1] * 80 + [0] * 20, 0.95)[1:] == (0.8, 1.0)
    assert proven_threshold(probs, [1] * 98 + [0] * 2, 0.95)[1:] == (0.95, 1.0)
    assert proven_threshold(probs, [1] * 100, 0.95) == (0.5, 1.0, 1.0)
    assert proven_threshold(probs, [1] * 100, 0.99) is None
    assert proven_threshold([0.5] * 400, [1] * 400, 0.95) == (0.5, 1.0, 1.0)  # ties are answered together
    assert proven_threshold([0.5], [1], 0.9) is None


@pytest.mark.parametrize("rows", [100, 600])
def test_a_proven_threshold_holds_on_new_rows(rows):
    broken = proven = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        probs = random.beta(2, 0.3, rows)
        found = proven_threshold(probs, random.random(rows) < probs, 0.95)
        proven += found is not None
        new = random.beta(2, 0.3, 20_000)
        broken += found is not None and new[new >= found.threshold].mean() < 0.95  # calibrated: the mean is the share
    assert broken <= 0.05 * 200 + 3 * (200 * 0.05 * 0.95) ** 0.5
    assert proven >= (0 if rows == 100 else 0.95 * 200)


@pytest.mark.parametrize("too_sure", [0.0, 0.03, 0.10])
def test_the_interval_of_the_error_holds_what_a_million_rows_show(too_sure):
    random = np.random.default_rng(9)
    many = random.beta(4, 1.2, 400_000)
    numbers = np.clip(np.ceil(many * 15) - 1, 0, 14).astype(int)
    gaps = np.bincount(numbers, np.clip(many - too_sure, 0, 1) - many)
    true = np.abs(gaps).sum() / len(many)
    held = without_zero = 0
    for seed in range(120):
        probs = random.beta(4, 1.2, 300)
        found = calibration_error(probs, random.random(300) < probs - too_sure, seed=seed, resamples=150)
        held += found.low <= true <= found.high
        without_zero += found.low > 0
        assert (found.low > 0) == (found.p < 0.05)
    assert held >= 0.95 * 120 - 3 * (120 * 0.05 * 0.95) ** 0.5
    if not too_sure:
        assert without_zero <= 0.05 * 120 + 3 * (120 * 0.05 * 0.95) ** 0.5


def test_abstaining_by_hand():
    found = selective([0.9, 0.8, 0.3, 0.2], [1, 0, 1, 0], 0.5, [False, False, False, True])
    assert (found.coverage, found.accuracy, found.handled) == (0.5, 0.5, 0.5)
    assert found.low < 0.5 < found.high
    assert (found.outside_held, found.inside_held) == (1.0, 1 / 3)
    assert selective([0.1], [1], 0.5)[1:] == (0.0, None, None, None, 0.0, None, 1.0)


def test_what_the_report_shows():
    probabilities, truth = sampled(800, 4, 3.0)
    fitted = Calibration(temperature=fit_temperature(probabilities, truth), abstain_below=0.5)
    right = (probabilities.argmax(1) == truth).astype(float)
    told = describe(
        fitted, probabilities.max(1), tempered(probabilities, fitted.temperature).max(1), right, fitted_on=9
    )
    assert told["before"]["error"] > 0.15
    assert told["after"]["error"] < 0.05
    assert told["curve"][-1][1:] == [1.0, pytest.approx(right.mean())]
    assert told["abstaining"]["accuracy"] > right.mean()
    sure = tempered(probabilities, fitted.temperature).max(1)
    easy = describe(fitted, sure, sure, sure > 0.4, fitted_on=9)["reaching"]["0.95"]
    assert easy["accuracy"] > 0.95
    assert 0 < easy["coverage"] < 1
    assert 0 < told["abstaining"]["coverage"] < 1
    assert not any(math.isnan(v) for v in told["abstaining"].values() if isinstance(v, float))
