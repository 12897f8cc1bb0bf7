"""What `lwc estimate` looks at: which weights of a network are pruned, to what densities, and networks drawn so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from lwc_compiler.errors import ModelError, OptionError
from lwc_compiler.model import Model
from lwc_compiler.passes.compact import compact
from lwc_compiler.passes.normalize import normalize
from lwc_compiler.passes.prune import kept_sites
from lwc_compiler.passes.recurrent import RECURRENT
from lwc_compiler.passes.sites import SITE_OPERATORS, constant_tensors, find_sites
from lwc_compiler.recipe.options import EstimateOptions, PruneOptions
from lwc_compiler.sparsity.draw import random_weights
from lwc_compiler.sparsity.masks import erdos_renyi_kernel, parse_structure

MAIN = 0.9  # what networks are pruned to most often: the sparsity that is looked at first
_WEIGHT_BYTES, _PAIR_BYTES = 4, 6  # of a weight, and of one that is kept with its index
_SMALL = 1 << 22  # weights of a network up to which zeros at random cut channels off
_DRAWN, _ROWS = 1 << 23, 64  # weights of a layer that are drawn, in so many outputs; a larger layer repeats them


@dataclass(frozen=True, eq=False)
class Goal:
    """A structure, a sparsity, and what they mean for each weight that is pruned.

    Attributes:
        structure: of the zeros, as in `PruneOptions`.
        sparsity: of the layers that are pruned.
        densities: weight -> kept / all.
    """

    structure: str
    sparsity: float
    densities: Mapping[str, float]


class Network:
    """A network, and which of its weights are pruned.

    Attributes:
        model: normalized.
        sites: all weights.
        by_node: the weight of each linear node.
        kept: weight -> why it stays as it is.
        pruned: the others.

    Args:
        model: as it was loaded.
        options: what is pruned.

    Raises:
        ModelError: nothing can be pruned.
        OptionError: an entry of `keep` matches no layer.
    """

    def __init__(self, model: Model, options: EstimateOptions) -> None:
        shapes = dict(options.shapes)
        self.model = normalize(model, shapes=shapes, batch=options.batch, fold_batch_norm=True)
        # Recurrent layers, which run their products in a loop, are taken as they are.
        self.sites = [site for site in find_sites(self.model.proto) if site.op_types[0] not in RECURRENT]
        self.by_node = {node: site for site in self.sites for node in site.nodes}
        pruning = PruneOptions(
            sparsity=MAIN, keep=options.keep, keep_first=options.keep_first, keep_depthwise=options.keep_depthwise
        )
        self.kept = kept_sites(self.sites, pruning, {})
        self.pruned = [site for site in self.sites if site.weight not in self.kept]
        if not self.pruned:
            listed = ", ".join(operator for operator in SITE_OPERATORS if operator not in RECURRENT)
            raise ModelError(
                f"model '{model.name}' has nothing to prune: no {listed} with a constant weight that may be"
            )

    @property
    def is_small(self) -> bool:
        """Whether zeros at random cut channels off."""
        return sum(site.size for site in self.sites) <= _SMALL

    def is_pruned(self, nodes: Sequence[str]) -> bool:
        """Whether a weight of these nodes is pruned."""
        return any(self.by_node[node].weight not in self.kept for node in nodes)

    def kept_weights(self, goal: Goal | None) -> float:
        """Weights that are left at a goal; None: all."""
        return sum(site.size * (goal.densities.get(site.weight, 1.0) if goal else 1.0) for site in self.sites)

    def weight_bytes(self, goal: Goal | None) -> float:
        """About the bytes of the weights that are left at a goal, with their indices; None: of all."""
        return self.kept_weights(goal) * (_WEIGHT_BYTES if goal is None else _PAIR_BYTES)

    def density(self, nodes: Sequence[str], goal: Goal) -> float:
        """Kept / all weights of these nodes that are pruned; 1 where none is."""
        pruned = [site for site in (self.by_node[node] for node in nodes) if site.weight not in self.kept]
        total = sum(site.size for site in pruned)
        return sum(site.size * goal.densities[site.weight] for site in pruned) / total if total else 1.0

    def goals(self, structures: Sequence[str], options: EstimateOptions) -> tuple[list[Goal], list[str]]:
        """The goals, structure by structure, by ascending sparsity; and which there are none for, and why.

        Raises:
            OptionError: no structure reaches any of the sparsities.
        """
        shapes, ones = {site.weight: site.shape for site in self.pruned}, {site.weight: 1.0 for site in self.pruned}
        goals, skipped = [], []
        for name in structures:
            most = parse_structure(name).highest_density
            for sparsity in sorted(options.sparsities):
                density = round(1 - sparsity, 12)
                if density > most + 1e-9:
                    skipped.append(f"{name} at {100 * sparsity:g} %: it keeps at most {100 * most:g} % of the weights")
                elif options.criterion == "uniform":
                    goals.append(Goal(name, sparsity, dict.fromkeys(shapes, density)))
                else:
                    limits = {weight: most * one for weight, one in ones.items()}
                    goals.append(Goal(name, sparsity, erdos_renyi_kernel(shapes, density, limits)))
        if not goals:
            raise OptionError("; ".join(skipped))
        return goals, skipped

    def drawn(self, goal: Goal) -> Model:
        """The network with random weights and the zeros of a goal, and without the channels that these cut off."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.model.proto)
        tensors = constant_tensors(proto.graph)
        for seed, site in enumerate(self.pruned):  # equal weights would be stored once
            rows, columns = site.matrix_shape
            own = min(rows, -(-_DRAWN // (_ROWS * columns)) * _ROWS)
            matrix = random_weights((own, columns), goal.densities[site.weight], goal.structure, seed, site.positions)
            if own < rows:
                matrix = matrix[np.arange(rows) % own]
            tensors[site.weight].ClearField("float_data")
            tensors[site.weight].raw_data = site.from_matrix(matrix).astype("<f4", copy=False).tobytes()
        model = Model(proto, self.model.name)
        return compact(model) if self.is_small else model
