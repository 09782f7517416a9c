"""What dense optimizers do to absent rows, in closed form, against their steps one by one."""

import numpy as np
import optax
import pytest

from din_jax.optim.dense import dense_adam, dense_rmsprop, dense_sgd

RATE = 0.5
SCHEDULES = {
    "constant": lambda count: np.full(np.shape(count), RATE),
    "warm-up": lambda count: RATE * np.minimum(count / 50, 1),
    "staircase": lambda count: RATE * 0.5 ** (count // 20),
}


def sums_of(dense, schedule, last_step, missed):
    """The sums that the rows of a last step share after some missed steps, from the coefficients.

    In float64, and of Adam, whose rate is lr(j) √(1 − β₂ʲ) / (1 − β₁ʲ).
    """
    steps = last_step + np.arange(1.0, min(missed, len(dense.coefficients)) + 1)
    rate = schedule(steps - 1) * np.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
    return (rate[:, None] * dense.coefficients[: len(steps)]).sum(axis=0)


def missed_steps(schedule, m, v, last_step, missed, eps):
    """The steps that dense Adam takes with a gradient of zero, one by one, in float64."""
    moved = np.zeros_like(m)
    for step in range(last_step + 1, last_step + missed + 1):
        m, v = 0.9 * m, 0.999 * v
        moved -= (
            schedule(np.float64(step - 1))
            * (m / (1 - 0.9**step))
            / (np.sqrt(v / (1 - 0.999**step)) + eps)
        )
    return moved


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_adams_movement_is_that_of_the_missed_steps(schedule):
    """Wherever √v lies beside ε, from the first step on."""
    eps = 1e-8
    root = np.logspace(-13, 0, 200)  # √v, from far below ε to far above it
    v = root**2
    m = 7.27 * root  # the most that β₁ and β₂ allow: m² ≤ v (1 − β₁)² / (1 − β₂) / (1 − β₁²/β₂)
    dense = dense_adam(RATE, eps=eps)
    leaves = {"mu": np.float32([m]), "nu": np.float32([v])}
    for last_step in (1, 2, 3, 7, 30, 200, 3000, 100_000):
        for missed in (0, 1, 2, 5, 20, 60, 400):
            sums = sums_of(dense, SCHEDULES[schedule], last_step, missed)
            found = dense.movement(leaves, np.int32([last_step]), np.float32([sums]))
            expected = missed_steps(SCHEDULES[schedule], m, v, last_step, missed, eps)
            np.testing.assert_allclose(found[0], expected, rtol=8e-5, atol=1e-7)
            assert np.abs(found[0] - expected).max() < 4e-5 * RATE
            # Where ε is negligible nothing is interpolated.
            np.testing.assert_allclose(found[0][-20:], expected[-20:], rtol=1e-6, atol=1e-7)


def test_terms_end_when_they_are_negligible():
    dense = dense_adam(1.0)
    assert len(dense.coefficients) == 198
    np.testing.assert_allclose(
        dense.coefficients.sum(axis=1), -((0.9 / 0.999**0.5) ** np.arange(1, 199)), rtol=1e-9
    )
    assert dense_sgd(1.0, 0.5).coefficients[:3, 0].tolist() == [-0.5, -0.25, -0.125]
    assert dense_sgd(1.0, 0.5, nesterov=True).coefficients[0, 0] == -0.25
    assert dense_rmsprop(1.0, momentum=0.5).coefficients[0, 0] == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dense_adam(1.0, b1=0.9, b2=0.8), "b1 / √b2 is too near to 1, or above"),
        (lambda: dense_adam(1.0, b1=0.9995, b2=0.9999), "missed steps never cease to matter"),
        (lambda: dense_adam(1.0, b2=1.0), "dense_adam: b2=1.0: expected 0 up to below 1"),
        (lambda: dense_adam(1.0, eps=0.0), "eps=0.0: expected more than 0"),
        (lambda: dense_sgd(1.0, -0.1), "dense_sgd: momentum=-0.1: expected 0 up to below 1"),
        (lambda: dense_rmsprop(1.0, momentum=0.9999), "momentum=0.9999 is too near to 1"),
    ],
)
def test_what_has_no_end_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_a_first_moment_adam_does_not_move_absent_rows():
    dense = dense_adam(1.0, b1=0.0)
    assert dense.decays == {"mu": 0.0, "nu": 0.999}
    assert not dense.coefficients.any()
    assert isinstance(dense.optimizer, optax.GradientTransformation)
