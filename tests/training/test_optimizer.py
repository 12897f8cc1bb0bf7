import numpy as np
import pytest

from lwc_compiler.recipe.options import RetrainOptions
from lwc_compiler.training.optimizer import OPTIMIZERS, AdamW, learning_rate

STEPS = 25


def adamw(w, g, state, step, rate, decay, l1, momentum):
    m, v = state
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g**2
    move = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    w = w * (1 - rate * decay) - rate * move
    return np.sign(w) * np.maximum(np.abs(w) - rate * l1, 0), (m, v)


def sgd(w, g, state, step, rate, decay, l1, momentum):
    velocity = momentum * state[0] + g + decay * w + l1 * np.sign(w)
    return w - rate * velocity, (velocity, state[1])


@pytest.mark.parametrize(("name", "reference"), [("adamw", adamw), ("sgd", sgd)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("l1", [0.0, 0.3])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_follows_the_formula_in_float64_and_keeps_zeros(rng, name, reference, decay, l1, clip):
    options = RetrainOptions(optimizer=name, weight_decay=decay, l1=l1, clip_norm=clip, momentum=0.8)
    shapes = {"w": (7, 5), "b": (5,)}
    masks = {"w": rng.random((7, 5)) < 0.3}
    weights = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    weights["w"][~masks["w"]] = 0
    exact = {key: array.astype(np.float64) for key, array in weights.items()}
    states = {key: (np.zeros(shape), np.zeros(shape)) for key, shape in shapes.items()}
    optimizer = OPTIMIZERS[name](weights, masks, {"w"}, options)
    for step in range(1, STEPS + 1):
        gradients = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
        wanted = {key: array.astype(np.float64) for key, array in gradients.items()}
        wanted["w"] *= masks["w"]
        norm = np.sqrt(sum((g**2).sum() for g in wanted.values()))  # of what survives
        scale = min(1.0, clip / norm) if clip else 1.0
        for key, g in wanted.items():
            used = (decay, l1) if key == "w" else (0.0, 0.0)
            exact[key], states[key] = reference(exact[key], g * scale, states[key], step, 0.01, *used, 0.8)
        optimizer.step(gradients, 0.01)
        assert not weights["w"][~masks["w"]].any()
        assert not np.signbit(weights["w"][~masks["w"]]).any()
        for key, array in optimizer.state.items():
            if key.endswith("/w"):
                assert not array[~masks["w"]].any()
    for key, array in weights.items():
        np.testing.assert_allclose(array, exact[key], rtol=2e-5, atol=2e-6)


def test_a_gradient_that_is_not_finite_does_not_reach_pruned_weights():
    weights = {"w": np.array([0.0, 1.0], np.float32)}
    optimizer = AdamW(weights, {"w": np.array([False, True])}, set(), RetrainOptions())
    optimizer.step({"w": np.array([np.inf, 1.0], np.float32)}, 0.1)
    assert weights["w"][0] == 0
    assert optimizer.state["second/w"][0] == 0


def test_l1_of_adamw_ends_at_zero():
    """0.25 moves by 0.1 x 1 a step and stops at 0."""
    weights = {"w": np.array([0.25, -0.25, 4.0], np.float32)}
    optimizer = AdamW(weights, {}, {"w"}, RetrainOptions(l1=1.0))
    seen = []
    for _ in range(4):
        optimizer.step({"w": np.zeros(3, np.float32)}, 0.1)
        seen.append(weights["w"].tolist())
    expected = [[0.15, -0.15, 3.9], [0.05, -0.05, 3.8], [0, 0, 3.7], [0, 0, 3.6]]
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    assert seen[-1][:2] == [0, 0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_never_minus_zero(name):
    """Not even where a rate x decay above 1 turns the weights' signs."""
    weights = {"w": np.array([0.0, 1.0, -1.0], np.float32)}
    mask = np.array([False, True, True])
    optimizer = OPTIMIZERS[name](weights, {"w": mask}, {"w"}, RetrainOptions(weight_decay=20.0))
    for sign in (1, -1, 1):
        optimizer.step({"w": np.full(3, sign, np.float32)}, 0.1)
        assert weights["w"][0] == 0
        assert not np.signbit(weights["w"][0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_new_masks_clear_weights_and_state(name):
    weights = {"w": np.arange(1, 5, dtype=np.float32), "b": np.ones(2, np.float32)}
    optimizer = OPTIMIZERS[name](weights, {"w": np.array([True, True, True, False])}, set(), RetrainOptions())
    optimizer.step({"w": np.ones(4, np.float32), "b": np.ones(2, np.float32)}, 0.1)
    before = weights["w"].copy()
    optimizer.set_masks({"w": np.array([True, False, False, True])})
    np.testing.assert_array_equal(weights["w"], [before[0], 0, 0, 0])
    for key, array in optimizer.state.items():
        assert array.any()
        if key.endswith("/w"):
            assert not array[1:].any()
    optimizer.step({"w": np.ones(4, np.float32), "b": np.ones(2, np.float32)}, 0.1)
    assert weights["w"][3] < 0  # what came back learns
    np.testing.assert_array_equal(weights["w"][1:3], 0)


def test_constant_schedule():
    assert learning_rate(RetrainOptions(schedule="constant", learning_rate=0.5), 123, 10) == 0.5


def test_cosine_schedule_starts_at_the_peak_and_ends_at_zero():
    options = RetrainOptions(schedule="cosine", learning_rate=0.5, epochs=4)
    rates = [learning_rate(options, step, 10) for step in range(41)]
    assert rates[0] == 0.5
    assert rates[20] == pytest.approx(0.25)
    assert rates[40] == pytest.approx(0)
    assert rates == sorted(rates, reverse=True)


def test_step_schedule():
    options = RetrainOptions(schedule="step", learning_rate=0.5, step_epochs=2, step_factor=0.1, epochs=9)
    rates = [learning_rate(options, epoch * 10 + 9, 10) for epoch in range(5)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])
