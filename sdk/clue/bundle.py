"""Load and save model bundles (see :mod:`clue.spec`). No pickle is read or written anywhere."""

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from clue._head import HeadError, classifier_head
from clue.architectures import build_model
from clue.errors import BundleError
from clue.spec import SPEC_FILE, WEIGHTS_FILE, ModelSpec, file_sha256, read_spec, verify_weights


@dataclass(frozen=True)
class ModelBundle:
    """A model in memory with the spec and digest it was loaded with."""

    model: nn.Module
    spec: ModelSpec
    digest: str


def load_bundle(folder: str | Path, *, allowed_factories: Collection[str] = ()) -> ModelBundle:
    """Load and verify a bundle; the model is returned in eval mode on the CPU.

    Args:
        folder: the bundle's folder.
        allowed_factories: importable architectures (``module:function``) that may be called.
            A bundle names code to run, so none is trusted unless it is listed here.

    Raises:
        BundleError: missing or damaged files, unknown architecture, weights that do not fit.
    """
    folder = Path(folder)
    spec, digest = read_spec(folder)
    verify_weights(folder, spec)
    model = build_model(spec, allowed_factories=allowed_factories)
    load_weights(model, folder / WEIGHTS_FILE)
    return ModelBundle(model.eval(), spec, digest)


def bundle_from_bytes(
    spec: ModelSpec, digest: str, weights: bytes, *, allowed_factories: Collection[str] = ()
) -> ModelBundle:
    """Like :func:`load_bundle` for a bundle whose parts are in memory; the caller has checked the digests."""
    model = build_model(spec, allowed_factories=allowed_factories)
    try:
        state = load(weights)
    except SafetensorError as error:
        raise BundleError(f"cannot read the weights: {error}") from None
    _fill(model, state, "the weights")
    return ModelBundle(model.eval(), spec, digest)


def bundle_to_bytes(model: nn.Module, spec: ModelSpec) -> tuple[bytes, bytes]:
    """The two files of a bundle, ``model.json`` and the weights, without writing either."""
    weights = save(_state_of(model))
    saved = replace(spec, weights_sha256=hashlib.sha256(weights).hexdigest())
    return saved.to_json().encode(), weights


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into ``model``, every tensor in place and none left over."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"cannot read weights from {path}: {error}") from None
    _fill(model, state, str(path))


def _fill(model: nn.Module, state: dict[str, Tensor], path: str) -> None:
    own = model.state_dict()
    state = _present_names(state, own)
    missing = sorted(own.keys() - state.keys())
    # A step counter that no forward pass reads; exporters often leave it out.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    extra = sorted(state.keys() - own.keys())
    if missing or extra:
        problem = f"missing {missing[:3]}" if missing else f"unexpected {extra[:3]}"
        raise BundleError(f"{path} does not fit the architecture: {problem}")
    head = _head_name(model)
    for name, tensor in state.items():
        if tensor.shape != own[name].shape and name in (f"{head}.weight", f"{head}.bias"):
            raise BundleError(
                f"{path} holds weights of {len(tensor)} classes, but {len(own[name])} class names are given: "
                "name every class of the weights, in the order of the logits"
            )
        if tensor.shape != own[name].shape:
            raise BundleError(
                f"{path} does not fit the architecture: {name} is {tuple(tensor.shape)}, "
                f"the model has {tuple(own[name].shape)}"
            )
    model.load_state_dict(state, strict=False)


def _present_names(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names that torchvision gives its transformers' MLPs since 0.13.

    Its published checkpoints carry the old ones, and only an unpickled ``load_state_dict`` would rename them.
    """
    renamed = {}
    for name, tensor in state.items():
        present = name.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")
        renamed[name if name in own else present] = tensor
    return renamed


def _head_name(model: nn.Module) -> str | None:
    """Name of the classifier head in the state dict; None for a model that does not end in a linear layer."""
    try:
        head = classifier_head(model)
    except HeadError:
        return None
    for name, module in model.named_modules():
        if module is head:
            return str(name)
    return None


def save_bundle(folder: str | Path, model: nn.Module, spec: ModelSpec) -> ModelSpec:
    """Write a bundle; returns the spec with the weights' digest filled in.

    The weights are on disk (fsync) before ``model.json`` names them, so an interrupted
    save never leaves a folder that passes :func:`load_bundle`.
    """
    folder = Path(folder)
    weights = folder / WEIGHTS_FILE
    state = _state_of(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC_FILE).unlink(missing_ok=True)
        save_file(state, weights)
        _fsync(weights)
        saved = replace(spec, weights_sha256=file_sha256(weights))
        temporary = folder / f".{SPEC_FILE}.new"
        temporary.write_text(saved.to_json(), encoding="utf-8")
        _fsync(temporary)
        temporary.replace(folder / SPEC_FILE)
        _fsync(folder)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"cannot write the model bundle {folder}: {error}") from None
    return saved


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    # Tied parameters would be refused by safetensors, hence a copy of each.
    return {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in model.state_dict().items()}


def parameters_are_finite(model: nn.Module) -> bool:
    """True if no parameter or buffer holds NaN or infinity."""
    tensors = (*model.parameters(), *model.buffers())
    return all(bool(torch.isfinite(t).all()) for t in tensors if t.is_floating_point())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
