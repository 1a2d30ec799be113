"""What comes into the batch-norms of a network, beside the running statistics that they keep of the training images."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# (input, running mean, running variance with the norm's epsilon) to what is to be known of it.
Measure = Callable[[Tensor, Tensor, Tensor], Tensor]


@contextmanager
def watched(model: nn.Module, measure: Measure) -> Iterator[list[Tensor]]:
    """Collect ``measure`` of the input of every batch-norm that runs inside the block, in the order in which they run.

    Norms without running statistics are passed over.
    """
    found: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not isinstance(module, _BatchNorm) or module.running_mean is None or module.running_var is None:
            return
        found.append(measure(inputs[0], module.running_mean, module.running_var + module.eps))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
