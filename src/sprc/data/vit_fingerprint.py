"""A digest of a model's frozen ViT, by which feature caches and states of runs know it again."""

import hashlib
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

FROZEN = "visual_encoder."
WORKERS = min(8, os.cpu_count() or 1)


def frozen_fingerprint(model: nn.Module) -> str:
    """SHA-256 over every byte, name, type and shape of the frozen ViT: equal ViTs have equal fingerprints.

    It is computed once, and again after a tensor was replaced, moved or changed in place. torch does not count a change
    through `tensor.data`, so this does not see it. EVA-CLIP-g in float16 (2 GB) takes about a second.
    """
    vit = model.get_submodule("visual_encoder")
    tensors = [*vit.parameters(), *vit.buffers()]
    known = _KNOWN.get(model)
    if known is None or not known.holds_for(tensors):
        known = _Fingerprint(digest_of(model), [_Seen.of(tensor) for tensor in tensors])
        _KNOWN[model] = known
    return known.digest


@dataclass(frozen=True)
class _Seen:
    """A tensor as it was; its version is the count of changes in place, None if torch keeps none (inference mode)."""

    tensor: weakref.ref
    place: int
    version: int | None

    @classmethod
    def of(cls, tensor: Tensor) -> "_Seen":
        version = None if tensor.is_inference() else tensor._version
        return cls(weakref.ref(tensor), tensor.data_ptr(), version)

    def is_same(self, tensor: Tensor) -> bool:
        if self.version is None or self.tensor() is not tensor:
            return False
        return not tensor.is_inference() and (self.place, self.version) == (tensor.data_ptr(), tensor._version)


@dataclass(frozen=True)
class _Fingerprint:
    digest: str
    seen: list[_Seen]

    def holds_for(self, tensors: list[Tensor]) -> bool:
        return len(tensors) == len(self.seen) and all(map(_Seen.is_same, self.seen, tensors))


_KNOWN: "weakref.WeakKeyDictionary[nn.Module, _Fingerprint]" = weakref.WeakKeyDictionary()


def digest_of(model: nn.Module) -> str:
    """What `frozen_fingerprint` gives, computed each time."""
    return digest_of_tensors({name: value for name, value in model.state_dict().items() if name.startswith(FROZEN)})


def digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the bytes, names, types and shapes of tensors, in the order of their names."""
    digest, named = hashlib.sha256(), sorted(tensors.items())
    for (name, value), content in zip(named, _contents([value for _, value in named]), strict=True):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode() + content)
    return digest.hexdigest()


def _contents(tensors: list[Tensor]) -> list[bytes]:
    """The digest of each tensor's bytes.

    Threads work on tensors of the CPU, since hashlib releases the GIL. Others go one by one: each is copied first.
    """
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return [_content(tensor) for tensor in tensors]
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(_content, tensors))


def _content(tensor: Tensor) -> bytes:
    flat = tensor.detach().reshape(-1).cpu().contiguous()
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).digest()
