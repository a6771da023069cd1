"""Saved SVF adapters, as an engine that computes with factors reads them."""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.generation.vllm.mixture import Mixture
from svf_rl.svf.combine import combine_matrices
from svf_rl.svf.decompose import Factors
from svf_rl.svf.expert import read_expert
from svf_rl.svf.layer import SVFFactors
from svf_rl.svf.mask import Mask, multiplier_of_all
from svf_rl.svf.probe import Projections, agrees, probe, project_factors


class AdapterFolders:
    """
    From a folder, or a name on the Hub, to what an engine computes with.

    Args:
        model (`str`): What the engine serves, by the name for errors.
        factors (`Mapping[str, SVFFactors]`): Of the served matrices, by the path in the model's files.
        fingerprints (`Mapping[str, str]`): Of their weights, by the same paths.
        paths (`Mapping[str, str]`): These paths, by those of the modules of transformers' model.
    """

    def __init__(
        self,
        model: str,
        factors: Mapping[str, SVFFactors],
        fingerprints: Mapping[str, str],
        paths: Mapping[str, str],
    ):
        self._model, self._factors, self._fingerprints, self._paths = model, factors, fingerprints, paths
        self._projections = cache(self._project)

    def read(self, path: str) -> dict[str, Tensor]:
        """
        `m` (r,) of each matrix that the adapter in a folder adapts, by the path in the model's files; of a
        [`Mixture.path`] the combined one.

        Raises:
            SVFError: there is no sound SVF adapter in it, or its `z` would not do here what it does on the weights that
                it was trained on.
        """
        mixture = Mixture.of_path(path)
        return self._read_one(path) if mixture is None else self._combine(mixture)

    def _combine(self, mixture: Mixture) -> dict[str, Tensor]:
        read = [self._read_one(folder) for folder in mixture.experts]
        # in the order of the model, whatever that of the files
        adapted = [path for path in self._factors if any(path in expert for expert in read)]
        masks = {}
        for path in adapted:
            unchanged = torch.ones(self._factors[path].s.numel(), dtype=torch.float64)
            masks[path] = torch.stack([expert.get(path, unchanged) for expert in read])
        return combine_matrices(masks, mixture.alpha, mixture.scope, mixture.form)

    def _read_one(self, folder: str) -> dict[str, Tensor]:
        expert = read_expert(folder)
        mask, multipliers = Mask.of(expert.config), {}
        for name, z in expert.z.items():
            path = self._paths.get(name)
            if path is None:
                raise SVFError(
                    f"adapter {folder} adapts {name}, which this server does not serve in factors: name its matrices "
                    f'to the server (--model-loader-extra-config \'{{"targets": "mlp+attention"}}\')'
                )
            matrix = self._projections(path)
            if z.shape != matrix.s.shape:
                raise SVFError(
                    f"adapter {folder} was trained on another model than {self._model}: {name} has {len(z)} values "
                    f"there, and {len(matrix.s)} singular values here"
                )
            m, recorded = multiplier_of_all(matrix.s, [(mask, z)]), expert.probes.get(name)
            same = expert.fingerprints[name] == self._fingerprints[path]
            if recorded is None or not agrees(matrix, probe(matrix, m), recorded, same):
                raise SVFError(
                    f"adapter {folder} was trained on other base weights than those of {self._model} ({name} is the "
                    f"first where its z does something else): serve {expert.config.base_model_name_or_path}, in the "
                    "dtype of its training"
                )
            multipliers[path] = m
        return multipliers

    def _project(self, path: str) -> Projections:
        u, s, vt = self._factors[path].tensors()
        return project_factors(Factors(u, s, vt))
