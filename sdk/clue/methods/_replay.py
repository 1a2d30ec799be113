"""Run only the last part of a network, from activations that its first part computed once.

Where only the last layers of a network change, everything before them gives the same answer in
every step. A :class:`Cut` finds the last module whose output is all that the changing part depends
on, computes that output once for each image, and later replays the rest of the network from it.

Nothing is assumed about the architecture. The model's own ``forward`` runs on; modules that finished
before the cut return blanks of the right shape, and the module at the cut returns the activations.
A cut is accepted only if the replayed logits equal the real ones for two different blanks, so
a connection that goes around it is noticed, and an earlier module is tried. Where none will do, the
"activations" are the images themselves and the whole network runs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# Cuts tried before the whole network is run instead; a block of a network has fewer modules than that.
_CANDIDATES = 24


class _StopForward(Exception):
    """Raised by the hook at the cut: what comes after it is not needed."""


@dataclass
class _Trace:
    """When each module ran in one forward pass, and what shape it gave; by module name."""

    first_start: dict[str, int] = field(default_factory=dict)
    last_end: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


class Cut:
    """Where ``model`` is cut, for a given set of parameters that change after it.

    Args:
        model: in eval mode. It is patched only inside :meth:`replaying`.
        free: the parameters that will change; all others must stay as they are while the cut is used.
        images: a few images (N, C, H, W), N >= 1, to try cuts with.
    """

    def __init__(self, model: nn.Module, free: list[nn.Parameter], images: Tensor) -> None:
        self._model = model
        self._image_shape = images.shape[1:]
        self._fill = 0.0
        self._held: Tensor | None = None
        self._at: str | None = None
        self._blanks: dict[str, torch.Size] = {}
        self._find(free, images[:2])

    @property
    def module_name(self) -> str | None:
        """Name of the module whose output is kept; None where the whole network is run."""
        return self._at

    @torch.no_grad()
    def activations(self, images: Tensor) -> Tensor:
        """What enters the last part for images (N, C, H, W); the first axis stays N. Not inside :meth:`replaying`."""
        if self._at is None:
            return images
        # On the CPU convolutions are much faster in this layout.
        images = images.contiguous(memory_format=torch.channels_last)
        kept: list[Tensor] = []

        def stop(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            kept.append(output.detach())
            raise _StopForward

        handle = self._model.get_submodule(self._at).register_forward_hook(stop)
        try:
            self._model(images)
        except _StopForward:
            pass
        finally:
            handle.remove()
        return kept[0]

    @contextmanager
    def replaying(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Inside the block the model runs its last part only; yields ``activations -> model input``.

        Call the model with the input that the function gives, so that hooks and
        :func:`torch.func.functional_call` work as always::

            with cut.replaying() as enter:
                logits = model(enter(activations))
        """
        if self._at is None:
            yield lambda activations: activations
            return
        names = [self._at, *self._blanks]
        modules = [self._model.get_submodule(name) for name in names]
        try:
            for name, module in zip(names, modules, strict=True):
                # An instance attribute hides the method of the class until it is deleted.
                module.forward = self._stub(name)
            yield self._enter
        finally:
            for module in modules:
                vars(module).pop("forward", None)
            self._held = None

    def _enter(self, activations: Tensor) -> Tensor:
        self._held = activations
        return self._blank(self._image_shape, len(activations), activations)

    def _stub(self, name: str) -> Callable[..., Tensor]:
        def forward(*_args: object, **_options: object) -> Tensor:
            held = self._held
            if held is None:
                raise RuntimeError("a model that is being replayed was called without activations")
            return held if name == self._at else self._blank(self._blanks[name], len(held), held)

        return forward

    def _blank(self, shape: torch.Size, count: int, like: Tensor) -> Tensor:
        """Costs no memory until something writes to it."""
        return like.new_full((), self._fill).expand(count, *shape)

    def _find(self, free: list[nn.Parameter], images: Tensor) -> None:
        with torch.no_grad():
            trace, logits = _trace(self._model, images)
        wanted = {id(parameter) for parameter in free}
        starts = [
            trace.first_start[name]
            for name, module in self._model.named_modules()
            if name in trace.first_start and any(id(p) in wanted for p in module.parameters(recurse=False))
        ]
        if not starts:
            return
        before = [name for name, end in trace.last_end.items() if end < min(starts) and name in trace.shapes]
        for name in sorted(before, key=lambda name: -trace.last_end[name])[:_CANDIDATES]:
            if trace.calls[name] > 1 or vars(self._model.get_submodule(name)).get("forward") is not None:
                continue
            self._at, self._blanks = name, _outermost(trace, name)
            if self._holds(images, logits):
                return
        self._at, self._blanks = None, {}

    @torch.no_grad()
    def _holds(self, images: Tensor, logits: Tensor) -> bool:
        """Whether replaying gives the logits that the whole network gave, whatever the blanks hold."""
        activations = self.activations(images)
        if activations.shape[:1] != images.shape[:1]:
            return False
        try:
            for fill in (0.0, 1.0):
                self._fill = fill
                with self.replaying() as enter:
                    if not torch.allclose(self._model(enter(activations)), logits, rtol=1e-4, atol=1e-4):
                        return False
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            # The network looks at a blank in a way that blanks do not bear (an in-place change, a list of outputs).
            return False
        finally:
            self._fill = 0.0
        return True


def _trace(model: nn.Module, images: Tensor) -> tuple[_Trace, Tensor]:
    """One forward pass, watched."""
    trace, clock = _Trace(), 0
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def start(_module: nn.Module, _inputs: object) -> None:
            nonlocal clock
            clock += 1
            trace.first_start.setdefault(name, clock)

        def end(_module: nn.Module, _inputs: object, output: object) -> None:
            nonlocal clock
            clock += 1
            trace.last_end[name] = clock
            trace.calls[name] = trace.calls.get(name, 0) + 1
            if isinstance(output, Tensor) and output.ndim and len(output) == len(images):
                trace.shapes[name] = output.shape[1:]
            else:
                trace.shapes.pop(name, None)

        handles.append(module.register_forward_pre_hook(start))
        handles.append(module.register_forward_hook(end))

    try:
        for name, module in model.named_modules():
            if name:
                watch(name, module)
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return trace, logits


def _outermost(trace: _Trace, cut: str) -> dict[str, torch.Size]:
    """The modules that are over before ``cut`` ends and in no other such module; they need not run."""
    end = trace.last_end[cut]
    over = {name for name, last in trace.last_end.items() if last < end and not name.startswith(f"{cut}.")}
    blanks = {}
    for name in over:
        parents = name.split(".")[:-1]
        inside = any(".".join(parents[: depth + 1]) in over for depth in range(len(parents)))
        if not inside and name in trace.shapes:
            blanks[name] = trace.shapes[name]
    return blanks
