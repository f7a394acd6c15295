import numpy as np
from scipy.special import softmax

from rung.prompts.calibration import batch_bias, divisors, probabilities


def test_calibration_removes_what_is_said_to_every_row():
    rng = np.random.default_rng(0)
    signal, prior = rng.normal(size=(50, 4)), np.array([9.0, 0.0, -5.0, 2.0])
    scores = (signal + prior).astype(np.float32)
    ones = np.ones(4, np.float32)
    calibrated = scores - batch_bias(scores, ones)
    centred = signal - signal.mean(0)
    np.testing.assert_allclose(calibrated, centred, atol=1e-5)
    assert (scores.argmax(1) == 0).mean() > 0.9
    assert (calibrated.argmax(1) == centred.argmax(1)).all()


def test_probabilities_are_a_softmax():
    scores = np.array([[-300.0, -2.0, -3.0]], np.float32)
    divisor, bias = divisors([(1,), (1, 2), (1, 2, 3)], "mean"), np.array([0.0, 0.5, 0.1], np.float32)
    expected = softmax(scores / divisor - bias, axis=-1)
    np.testing.assert_allclose(probabilities(scores, divisor, bias), expected, rtol=1e-5)
