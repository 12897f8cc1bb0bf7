"""Takes what an earlier run has made of the same model, data, recipe and version, instead of making it again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lwc_compiler.cache.keys import artifact_key, model_key, unknown_input
from lwc_compiler.cache.results import entry
from lwc_compiler.codegen.cuda_compiler import find_cuda_compiler
from lwc_compiler.codegen.link import find_compiler
from lwc_compiler.model import Model, load_model, save_model
from lwc_compiler.passes.lower import measured_candidates
from lwc_compiler.recipe.options import Recipe
from lwc_compiler.runtime.artifact import Artifact, copy_artifact
from lwc_compiler.targets import host_cpu
from lwc_compiler.targets.target import Target

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reuse:
    """The results of one model and recipe in the cache.

    Attributes:
        key: of the pruned and retrained model, see `cache.keys.model_key`; None: nothing is reused, nothing kept.
    """

    key: str | None

    @classmethod
    def of(cls, model: Model, recipe: Recipe) -> Reuse:
        """The results that `recipe` makes of `model`, as it was opened."""
        unknown = unknown_input(recipe)
        if unknown:
            logger.info("nothing is cached: '%s' is code, and what it returns may change unseen", unknown)
            return cls(None)
        return cls(model_key(model, recipe))

    def model(self, recipe: Recipe, name: str, make: Callable[[], Model]) -> Model:
        """The pruned and retrained model, called `name`: the cached one, or what `make` makes.

        Without retraining it is made in no time, and not kept.
        """
        if self.key is None or recipe.train_data is None:
            return make()
        with entry(self.key) as result:
            found = result.fetch()
            if found is not None:
                logger.info("retrained before with the same model, data, options and version: using %s", found)
                return load_model(found / f"{name}.onnx")
            model = make()
            result.store(lambda folder: save_model(model, folder / f"{name}.onnx"))
            return model

    def artifact(
        self,
        source_sha256: str,
        recipe: Recipe,
        target: Target,
        directory: Path,
        make: Callable[[], Artifact],
        *,
        force: bool = False,
    ) -> Artifact:
        """The artifact: a copy of the cached one in `directory`, or what `make` writes there.

        One whose code was not run is not kept: where an emulator is installed later, the check is made.
        """
        if self.key is None:
            return make()
        compiler = find_compiler(None if target.source else target, recipe.lower.cc)
        cuda = "" if target.gpu is None else str(find_cuda_compiler(target.gpu.architectures))
        cpu = host_cpu(target) if measured_candidates(recipe.lower, target) else ""
        with entry(artifact_key(self.key, source_sha256, recipe, target, compiler, cuda, cpu)) as result:
            found = result.fetch()
            if found is not None:
                logger.info("compiled before from the same model, data, recipe and version: using %s", found)
                return copy_artifact(found, directory, force=force)
            artifact = make()
            if not artifact.manifest.verification.skipped:
                result.store(lambda folder: shutil.copytree(directory, folder, dirs_exist_ok=True))
            return artifact
