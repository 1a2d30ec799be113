"""What a loop of a method does to survive a power cut: go on from a checkpoint, and save new ones.

A loop calls :meth:`Resumption.restore` once, before its first update, and draws every pass over the forget
set through :meth:`Resumption.walk`. After an update it asks :meth:`Resumption.due`, and hands what it
keeps in local variables to :meth:`Resumption.save`. The student, the generators, the records and the place in
the pass are seen to here. What a method computes before its loop, from the original model and the forget
images, is computed anew: it comes out the same. Where that is dear, the part is a loop of its own, which hands its
results to :meth:`Resumption.keep`.
"""

import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from clue import __version__
from clue.methods._batch import last_line
from clue.methods._checkpoint import (
    FORMAT,
    Checkpoint,
    DamagedCheckpointError,
    TensorDigest,
    as_bytes,
    decode,
    encode,
    model_digest,
    named_tensors,
)

if TYPE_CHECKING:
    from clue.methods._job import ForgetJob

T = TypeVar("T")
States = dict[str, Tensor]

# Whatever the disk, saving takes at most one part in this many of the time.
_SHARE = 100


@dataclass(frozen=True)
class Saved:
    """What a loop had kept: its own tensors, on the job's device, and its own numbers.

    Where it had ended, ``finished`` is true and the tensors are its results.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    finished: bool = False

    def sequence(self, name: str, count: int) -> list[Tensor | None]:
        """The tensors that :func:`numbered` named, None where it had none."""
        return [self.tensors.get(f"{name}.{index}") for index in range(count)]


def identity(
    job: "ForgetJob", method: str, hyperparameters: dict[str, Any], seed: int, looked_at: TensorDigest
) -> dict[str, Any]:
    """Everything that the result depends on, as far as it is known before the run."""
    data: Any = getattr(job.loader, "dataset", None)
    return {
        "clue": __version__,
        "torch": str(torch.__version__),
        "device": job.device.type,
        "method": method,
        "hyperparameters": hyperparameters,
        "seed": seed,
        "forget_class": job.forget_class,
        "batch_size": getattr(job.loader, "batch_size", None),
        "model": model_digest(job.original),
        "forget_images": len(data) if hasattr(data, "__len__") else None,
        "forget_images_looked_at": looked_at.hexdigest(),
    }


def numbered(name: str, tensors: Iterable[Tensor | None]) -> dict[str, Tensor]:
    """``name.0``, ``name.1``, ... for those that are there."""
    return {f"{name}.{index}": tensor for index, tensor in enumerate(tensors) if tensor is not None}


class Resumption:
    """The checkpoints of one job; without a place for them every method does nothing.

    Args:
        checkpoint: where they are kept.
        identity: what must be equal for a checkpoint to belong to this job, as JSON data.

    Attributes:
        resumed_at: share of the planned work that was done when the job went on, 0.0 if it did not.
        warnings: why it started over, or could not save; one line each.
    """

    def __init__(self, checkpoint: Checkpoint | None = None, identity: dict[str, Any] | None = None) -> None:
        self._checkpoint = checkpoint
        self._identity: dict[str, Any] = json.loads(json.dumps(identity or {}, default=repr))
        self._found: tuple[dict[str, Any], dict[str, Tensor]] | None = None
        self._loops: list[str] = []
        self._kept: dict[str, Tensor] = {}
        self._pass_start: States = {}
        self.resumed_at = 0.0
        self.warnings: list[str] = []
        if checkpoint is not None:
            self._found = self._load(checkpoint)
            self._due = time.monotonic() + checkpoint.every_seconds

    def restore(self, job: "ForgetJob", loop: str) -> Saved | None:
        """Put the job where the checkpoint of this loop left it; None if the loop starts at its beginning.

        Args:
            job: its student must be as the loop would begin with.
            loop: name of the loop; a job may have several, one after the other.
        """
        self._loops.append(loop)
        if self._found is None or self._found[0]["loops"][: len(self._loops)] != self._loops:
            return None
        header, tensors = self._found
        if header["loops"] != self._loops:
            return self._finished(job, tensors)
        self._found = None
        job.restore(header["epochs"], header["samples"])
        with torch.no_grad():
            for name, tensor in named_tensors(job.student):
                if f"student.{name}" in tensors:
                    tensor.copy_(tensors[f"student.{name}"])
        self._pass_start = _under("pass.", tensors)
        _set_states(job, _under("now.", tensors))
        self.resumed_at = float(header["fraction"])
        own = {name: tensor.to(job.device) for name, tensor in _under("loop.", tensors).items()}
        return Saved(own, header["numbers"])

    def ended(self, job: "ForgetJob", loop: str) -> Saved | None:
        """What this loop, the next one, handed to :meth:`keep` if the checkpoint is of a later one; else None."""
        loops = [*self._loops, loop]
        found = [] if self._found is None else self._found[0]["loops"]
        is_later = len(found) > len(loops) and found[: len(loops)] == loops
        return self.restore(job, loop) if is_later else None

    def keep(self, job: "ForgetJob", results: dict[str, Tensor]) -> None:
        """The loop has ended: every later checkpoint of the job holds its results."""
        if self._checkpoint is not None:
            self._kept |= _named(self._done, _named("now.", _states(job)) | _named("loop.", results))

    def _finished(self, job: "ForgetJob", tensors: dict[str, Tensor]) -> Saved | None:
        """What the loop handed to :meth:`keep`, the generators as they were then; None if it kept nothing."""
        results = _under(self._done, tensors)
        if not results:
            return None
        self._kept |= _named(self._done, results)
        _set_states(job, _under("now.", results))
        return Saved({name: t.to(job.device) for name, t in _under("loop.", results).items()}, {}, finished=True)

    @property
    def _done(self) -> str:
        return f"done.{len(self._loops)}."

    def walk(self, job: "ForgetJob", items: Iterator[T], done: int) -> Iterator[T]:
        """One pass: ``items`` less the first ``done``, which the checkpoint has seen.

        The order of a pass is drawn when it starts. So those items are drawn again from the generators as they were
        then, and after that the generators are put where they were when the checkpoint was written.
        """
        if self._checkpoint is not None:
            now = _states(job)
            if done:
                _set_states(job, self._pass_start)
                for _ in islice(items, done):
                    pass
                _set_states(job, now)
            else:
                self._pass_start = now
        yield from items

    def due(self) -> bool:
        """Whether it is time to save."""
        return self._checkpoint is not None and time.monotonic() >= self._due

    def save(self, job: "ForgetJob", fraction: float, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            job: the running job.
            fraction: share of the planned work that is done, in [0, 1].
            tensors: the loop's own.
            numbers: the loop's own, as JSON data.
        """
        if self._checkpoint is None:
            return
        started = time.monotonic()
        header = {
            "format": FORMAT,
            "identity": self._identity,
            "loops": self._loops,
            "fraction": fraction,
            "samples": job.samples,
            "epochs": [asdict(record) for record in job.epochs],
            "numbers": numbers,
        }
        everything = {
            **_named("student.", _changed(job)),
            **_named("pass.", self._pass_start),
            **_named("now.", _states(job)),
            **self._kept,
            **_named("loop.", tensors),
        }
        try:
            self._checkpoint.save(encode(header, everything))
        except OSError as error:
            self._warn(f"a checkpoint could not be written: {last_line(error)}")
        ended = time.monotonic()
        every = self._checkpoint.every_seconds
        self._due = ended + max(every, (_SHARE - 1) * (ended - started)) if every > 0 else ended

    def finish(self, method: str) -> None:
        """The job has ended: say so where checkpoints were asked for and the method has none."""
        if self._checkpoint is not None and not self._loops:
            self._warn(f"{method} cannot be resumed: it writes no checkpoints and always starts over")
        elif self._found is not None:
            self._warn("the checkpoint was of a part that this run did not come to: started over")

    def _load(self, checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        try:
            data = checkpoint.load()
        except Exception as error:
            self._warn(f"the checkpoint cannot be read, started over: {last_line(error)}")
            return None
        if data is None:
            return None
        try:
            header, tensors = decode(data)
        except DamagedCheckpointError as error:
            self._warn(f"the checkpoint is damaged, started over: {error}")
            return None
        theirs = header["identity"]
        differing = sorted(
            name for name in theirs.keys() | self._identity.keys() if theirs.get(name) != self._identity.get(name)
        )
        if differing:
            self._warn(f"the checkpoint is of another run ({', '.join(differing)} differ), started over")
            return None
        return header, tensors

    def _warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)


def _changed(job: "ForgetJob") -> dict[str, Tensor]:
    """What is not, bit for bit, as in the original."""
    pairs = zip(named_tensors(job.student), named_tensors(job.original), strict=True)
    return {name: own for (name, own), (_, old) in pairs if not torch.equal(as_bytes(own), as_bytes(old))}


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _generators(job: "ForgetJob") -> dict[str, torch.Generator]:
    """Every generator that the job draws from, each once: its own, torch's, and those of the user's DataLoader."""
    sampler = getattr(job.loader, "sampler", None)
    inner = getattr(getattr(job.loader, "batch_sampler", None), "sampler", None)
    owners: Sequence[tuple[str, Any]] = (("loader", job.loader), ("sampler", sampler), ("batch_sampler", inner))
    found = {"job": job.generator, "torch": torch.default_generator}
    for name, owner in owners:
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not known for known in found.values()):
            found[name] = generator
    return found


def _states(job: "ForgetJob") -> States:
    """The states of torch's generators and of Python's, which may hold the second half of a Gaussian draw."""
    states = {name: generator.get_state() for name, generator in _generators(job).items()}
    _, words, gauss = random.getstate()
    states["python"] = torch.tensor(words, dtype=torch.int64)
    states["python_gauss"] = torch.tensor([] if gauss is None else [gauss], dtype=torch.float64)
    return states


def _set_states(job: "ForgetJob", states: States) -> None:
    for name, generator in _generators(job).items():
        generator.set_state(states[name])
    gauss = states["python_gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
