"""AdamW and SGD with momentum on numpy arrays: what a mask prunes is exactly 0 after every step, state included."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lwc_compiler.recipe.options import RetrainOptions

Array = NDArray[np.float32]
Arrays = dict[str, Array]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # the defaults of Kingma and Ba 2015


class Optimizer(ABC):
    """Changes weights in place.

    Attributes:
        weights: name -> array.
        pruned: name -> entries whose gradient counts as 0; what is 0 there, in weights and state, stays exactly 0.
        state: slot/name -> array (moments, momentum), for checkpoints.
        steps: steps done.
    """

    slots: tuple[str, ...]

    def __init__(
        self, weights: Arrays, masks: Mapping[str, NDArray[np.bool_]], decayed: set[str], options: RetrainOptions
    ) -> None:
        self.weights = weights
        self.pruned: dict[str, NDArray[np.bool_]] = {}
        self.decay = {name: options.weight_decay if name in decayed else 0.0 for name in weights}
        self.l1 = {name: options.l1 if name in decayed else 0.0 for name in weights}
        self.clip_norm = options.clip_norm
        self.momentum = options.momentum
        self.state: Arrays = {f"{slot}/{name}": np.zeros_like(w) for slot in self.slots for name, w in weights.items()}
        self.steps = 0
        self._scratch = np.empty(max(w.size for w in weights.values()), np.float32)
        self.set_masks(masks)

    def set_masks(self, masks: Mapping[str, NDArray[np.bool_]]) -> None:
        """From now on weights outside `masks` (name -> kept entries) are 0, and their state is."""
        self.pruned = {name: ~masks[name] for name in self.weights if name in masks}
        for name, pruned in self.pruned.items():
            for array in (self.weights[name], *(self.state[f"{slot}/{name}"] for slot in self.slots)):
                np.copyto(array, 0, where=pruned)

    def step(self, gradients: Arrays, learning_rate: float) -> None:
        """One update; `gradients` are overwritten."""
        for name, pruned in self.pruned.items():
            np.copyto(gradients[name], 0, where=pruned)
        if self.clip_norm is not None:
            norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
            if norm > self.clip_norm:
                for gradient in gradients.values():
                    gradient *= self.clip_norm / norm
        self.steps += 1
        with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges is told from its loss
            for name, weight in self.weights.items():
                scratch = self._scratch[: weight.size].reshape(weight.shape)
                self.update(name, weight, gradients[name], learning_rate, scratch)

    @abstractmethod
    def update(self, name: str, weight: Array, gradient: Array, learning_rate: float, scratch: Array) -> None:
        """Updates one weight; `scratch` is memory of its shape."""


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    L1 is decoupled in the same way: after a step, weights move towards 0 by learning rate x l1 and stop there.
    """

    slots = ("first", "second")

    def update(self, name: str, weight: Array, gradient: Array, learning_rate: float, scratch: Array) -> None:
        first, second = self.state[f"first/{name}"], self.state[f"second/{name}"]
        first *= BETA1
        np.multiply(gradient, 1 - BETA1, out=scratch)
        first += scratch
        second *= BETA2
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1 - BETA2
        second += scratch
        np.sqrt(second, out=scratch)
        scratch /= math.sqrt(1 - BETA2**self.steps)
        scratch += EPSILON
        np.divide(first, scratch, out=scratch)
        scratch *= learning_rate / (1 - BETA1**self.steps)
        if self.decay[name]:
            weight *= max(1 - learning_rate * self.decay[name], 0.0)  # a negative factor would make pruned weights -0
        weight -= scratch
        if self.l1[name]:
            np.clip(weight, -learning_rate * self.l1[name], learning_rate * self.l1[name], out=scratch)
            weight -= scratch


class SGD(Optimizer):
    """Gradient descent with momentum: v <- mu v + g + decay w + l1 sign(w), w <- w - lr v (Sutskever et al. 2013)."""

    slots = ("momentum",)

    def update(self, name: str, weight: Array, gradient: Array, learning_rate: float, scratch: Array) -> None:
        velocity = self.state[f"momentum/{name}"]
        velocity *= self.momentum
        velocity += gradient
        if self.decay[name]:
            np.multiply(weight, self.decay[name], out=scratch)
            velocity += scratch
        if self.l1[name]:
            np.sign(weight, out=scratch)
            scratch *= self.l1[name]
            velocity += scratch
        np.multiply(velocity, learning_rate, out=scratch)
        weight -= scratch


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "sgd": SGD}


def learning_rate(options: RetrainOptions, step: int, steps_per_epoch: int) -> float:
    """The rate of optimizer step `step` (from 0) of a run of `options.epochs` x `steps_per_epoch` steps."""
    if options.schedule == "cosine":
        progress = step / (options.epochs * steps_per_epoch)
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if options.schedule == "step":
        return options.learning_rate * options.step_factor ** (step // steps_per_epoch // options.step_epochs)
    return options.learning_rate
