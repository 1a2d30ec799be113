"""``bench``: every method on every class, each run in a fresh process, judged against Retrain."""

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clue import __version__
from clue.architectures import build_model
from clue.bench._job import WorkerJob, write_result
from clue.bench._judged import code_digest, describe, judged
from clue.bench._options import BenchOptions
from clue.bench._oracle import Oracles
from clue.bench._plausible import doubt
from clue.bench._report import Measures, cost, over_seeds, summary, with_gap
from clue.bench._resume import earlier_runs
from clue.bench._runner import Quiet, Reporter, Runner
from clue.bench._training import EPOCHS_OF_THE_PAPER
from clue.bundle import load_weights
from clue.data.decoded import decode, decoded_digest, open_source
from clue.errors import ClueError, DataError
from clue.methods import get_method
from clue.methods.retrain import NAME
from clue.spec import ModelSpec, file_sha256

FORMAT = "clue-bench/2"


def bench(
    options: BenchOptions,
    *,
    json_path: Path | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Run the bench; returns the report that is also written to ``json_path`` after every run.

    The report is ``{"format", "classes", "options", "original": {class: measures}, "retrain":
    {class: measures}, "runs": [...], "summary": {method: ...}, "cost": {class: {method: ...}}}``.
    Rates are in percent, energy in joules, memory in bytes. A run that failed has ``error`` in
    place of the measures.

    Args:
        options: what to measure.
        json_path: where the report goes.
        resume: keep the runs of the report that ``json_path`` already holds, if it was made with
            the same options.
        reporter: hears of progress.

    Raises:
        ClueError: images, weights, class or method names are wrong; nothing is run then.
    """
    reporter = reporter or Quiet()
    options.check()
    source = open_source(options.data)
    spec, weights = options.model(source.classes)
    classes = options.classes(spec)
    given = [options.oracle_path(name, seed) for name in classes for seed in range(options.oracle_seeds)]
    given_oracles = list(dict.fromkeys(path for path in given if path is not None))
    original = build_model(spec)
    load_weights(original, weights)
    for path in given_oracles:
        # Now, not after an hour of training.
        load_weights(build_model(spec), path)
    if json_path is not None:
        _check_writable(json_path)
    reporter.line(f"images: {options.data}")
    title = f"decoding {sum(map(len, source.members.values()))} images"
    images = decode(
        source,
        spec.input_size,
        options.cache,
        lambda done, total: reporter.progress(title, done / total, float("nan"), f"{done}/{total}"),
    )
    reporter.finished(title)
    if doubtful := doubt(original, spec, images, named=weights != options.weights):
        reporter.line(f"warning: {doubtful}")
    del original
    identity = options.identity() | {
        "images": decoded_digest(images),
        "weights": file_sha256(weights),
        "model": describe(spec),
        "code": [__version__, code_digest()],
    }
    if given_oracles:
        identity["oracle"] = [file_sha256(path) for path in given_oracles]
    identity = json.loads(json.dumps(identity))  # as it will be read back: a tuple is a list there
    done = earlier_runs(json_path, identity, FORMAT) if resume and json_path is not None else {}
    report: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "unit": "rates in percent, energy in joules, memory in bytes, kl in nats",
        "classes": list(spec.classes),
        "architecture": spec.architecture,
        "sizes": asdict(options.sizes),
        "options": identity,
        "original": {},
        "retrain": {},
        "runs": list(done.values()),
        "summary": {},
        "cost": {},
    }
    with tempfile.TemporaryDirectory(prefix="clue-bench-") as folder:
        run = Runner(Path(folder), options.timeout, reporter)
        job = WorkerJob(
            cache=str(images.absolute()),
            spec=spec.to_json(),
            forget_class=0,
            weights=str(weights.absolute()),
            threads=options.threads,
            sizes=options.sizes,
        )
        bench_ = _Bench(options, spec, run, report, json_path, decoded_digest(images), done)
        bench_.planned = len(classes) * len(options.all_methods) * options.seeds
        for name in classes:
            bench_.one_class(name, replace(job, forget_class=spec.class_index(name)))
    return report


class _Bench:
    """A bench at work on its report."""

    def __init__(
        self,
        options: BenchOptions,
        spec: ModelSpec,
        run: Runner,
        report: dict[str, Any],
        json_path: Path | None,
        images: str,
        done: dict[tuple[str, str, int], Measures],
    ) -> None:
        self.planned = 0
        self._options = options
        self._run = run
        self._report = report
        self._json_path = json_path
        self._images = images
        self._done = done
        self._oracles = Oracles(options, images, spec, run)

    def one_class(self, name: str, job: WorkerJob) -> None:
        """Judge Retrain and the original, time Retrain, then every method with every seed."""
        weights = [str(self._oracles.weights(job, seed)) for seed in range(self._options.oracle_seeds)]
        job = replace(job, oracles=tuple(weights))
        oracle = self._judge_oracles(name, job)
        oracle |= self._time(name, job, oracle)
        self._report["retrain"][name] = oracle
        self._report["original"][name] = with_gap(self._judge(job, f"{name}: original"), oracle)
        self._write()
        for method in self._options.all_methods:
            for seed in range(self._options.seeds):
                if (name, method, seed) not in self._done:
                    measured = self._one_run(name, job, method, seed)
                    named = {"forget_class": name, "method": method, "seed": seed}
                    self._report["runs"].append(named | with_gap(measured, oracle))
                    self._report["runs"].sort(key=self._place)
                    self._write()
        self._write()

    def _place(self, run: Measures) -> tuple[int, int, int]:
        names, methods = self._report["classes"], self._options.all_methods
        return names.index(run["forget_class"]), methods.index(run["method"]), run["seed"]

    def _one_run(self, name: str, job: WorkerJob, method: str, seed: int) -> Measures:
        title = f"{name}: {method}, seed {seed} ({len(self._report['runs']) + 1} of {self.planned})"
        if not get_method(method).oracle:
            settings = self._options.hyperparameters.get(method, {})
            return self._run(replace(job, task="forget", method=method, hyperparameters=settings, seed=seed), title)
        try:
            weights, spent = self._oracles.trained(job, seed)
            return spent | self._judge(_against_others(job, str(weights)), title)
        except ClueError as error:
            return {"error": str(error)}

    def _judge_oracles(self, name: str, job: WorkerJob) -> Measures:
        found = []
        for seed, weights in enumerate(job.oracles):
            title = f"{name}: Retrain" + (f", seed {seed}" if len(job.oracles) > 1 else "")
            measured = self._judge(_against_others(job, weights), title)
            spent: Measures = {}
            if self._options.oracle_weights is None:
                _, spent = self._oracles.trained(job, seed)
            found.append({"seed": seed} | spent | measured)
        return over_seeds(found)

    def _judge(self, job: WorkerJob, title: str) -> Measures:
        """The measures of a model as it is, from the cache where it holds them."""
        return judged(
            job,
            self._images,
            self._options.cache,
            self._options.use_judged,
            lambda: self._run.certainly(job, f"judging {title}"),
        )

    def _time(self, name: str, job: WorkerJob, oracle: Measures) -> Measures:
        """Seconds of 30 epochs of Retrain on this machine, now; measured if they were just trained."""
        if oracle.get("epochs") == EPOCHS_OF_THE_PAPER and self._oracles.trained_now(job.forget_class):
            spent = {f"{kind}seconds_30_epochs": oracle[f"{kind}seconds"] for kind in ("", "cpu_")}
            return spent | {"seconds_source": "measured"}
        timing = replace(job, task="time", method=NAME, hyperparameters=self._oracles.settings(job))
        timed = self._run.certainly(timing, f"{name}: timing Retrain")
        return {key: value for key, value in timed.items() if key not in oracle}

    def _write(self) -> None:
        self._report["summary"] = summary(self._report)
        self._report["cost"] = {name: cost(self._report, name) for name in self._report["retrain"]}
        if self._json_path is not None:
            write_result(self._json_path, self._report)


def _against_others(job: WorkerJob, weights: str) -> WorkerJob:
    """Judge an oracle. Its divergence is that from the other ones: how far two trainings differ is the floor."""
    others = tuple(other for other in job.oracles if other != weights)
    return replace(job, weights=weights, oracles=others or job.oracles)


def _check_writable(path: Path) -> None:
    """Fail before hours are spent, not after."""
    probe = path.with_name(f".{path.name}.probe")
    try:
        if path.is_dir():
            raise DataError(f"cannot write {path}: it is a folder")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
