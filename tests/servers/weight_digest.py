"""A worker that also tells of what its weights are made of. vLLM imports it in the server."""

import hashlib

import torch

from svf_rl.generation.worker_extension import SVFWorkerExtension


class DigestExtension(SVFWorkerExtension):
    def svf_digest(self) -> str:
        """Of every weight, factor and buffer that the model computes with."""
        digest = hashlib.sha256()
        for name, module in self.model_runner.get_model().named_modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            own += [part.weight for part in getattr(module, "svf_parts", ())]
            own += [module.svf_vt] if hasattr(module, "svf_vt") else []
            for tensor in own:
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()
