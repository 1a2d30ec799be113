"""``/metrics`` of one device for Prometheus, on loopback; off unless ``metrics_port`` is set in agent.toml.

Every scrape reads the journal and the model's description anew, so a restart loses nothing. The names follow
Prometheus' conventions: base units (seconds, joules, bytes, ratios in [0, 1]), ``_info`` for facts in labels.
"""

import os
import threading
from collections.abc import Callable, Iterator
from wsgiref.simple_server import WSGIServer

import psutil
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

import clue
from clue_agent.config import AgentConfig
from clue_agent.errors import AgentError
from clue_agent.observe import JournalReader, Model, Work, read_model
from clue_protocol.v1 import forget_pb2 as pb

# Child processes whose memory is worth a series, by a word of their command line.
_CHILDREN = ("flower-supernode", "flower-superexec", "flwr-clientapp", "clue_agent.worker")


class DeviceCollector(Collector):
    """Gauges over one agent's home.

    Args:
        config: where the home is.
        fleet: name of the device's fleet.
        held: why the work is paused ("hot: 84 C"), empty while it is not.
    """

    def __init__(self, config: AgentConfig, fleet: str, held: Callable[[], str]) -> None:
        self._config = config
        self._fleet = fleet
        self._held = held
        self._journal = JournalReader(config.journal)
        # The server answers each scrape in a thread of its own.
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """One reading; what cannot be read is left out, and ``clue_agent_up`` says so."""
        problems = 0
        work = model = None
        try:
            with self._lock:
                work = self._journal.read()
        except AgentError:
            problems += 1
        try:
            model = read_model(self._config)
        except AgentError:
            problems += 1
        yield GaugeMetricFamily("clue_agent_up", "1 if journal and model could be read.", value=float(not problems))
        yield self._info()
        yield from self._holding()
        if model is not None:
            yield from _model(model)
        if work is not None:
            yield from _work(work)
        yield _memory()

    def _info(self) -> Metric:
        labels = {"version": clue.__version__, "device": self._config.device_id, "fleet": self._fleet}
        return InfoMetricFamily("clue_agent", "This agent.", value=labels)

    def _holding(self) -> Iterator[Metric]:
        reason = self._held()
        yield GaugeMetricFamily("clue_agent_held", "1 while the work is paused.", value=float(bool(reason)))
        if reason:
            # What comes before the colon: a label with a temperature in it would be a new series every second.
            yield InfoMetricFamily(
                "clue_agent_hold", "Why the work is paused.", value={"reason": reason.split(":")[0].strip()}
            )


def _model(model: Model) -> Iterator[Metric]:
    yield InfoMetricFamily("clue_agent_model", "The model in use.", value={"digest": model.digest})
    yield GaugeMetricFamily("clue_agent_model_classes", "Classes of the model.", value=len(model.classes))
    yield GaugeMetricFamily(
        "clue_agent_model_forgotten_classes", "Classes that the model was made to forget.", value=len(model.forgotten)
    )


def _work(work: Work) -> Iterator[Metric]:
    yield GaugeMetricFamily("clue_agent_jobs_unfinished", "Jobs without a receipt.", value=work.unfinished)
    jobs = GaugeMetricFamily("clue_agent_jobs", "Receipts in the journal by outcome.", labels=["outcome"])
    for outcome, count in work.outcomes.items():
        jobs.add_metric([outcome.lower()], count)
    yield jobs
    if work.last is not None:
        yield GaugeMetricFamily(
            "clue_agent_last_job_timestamp_seconds",
            "When the last job ended, since 1970.",
            value=work.last.finished_at.ToNanoseconds() / 1e9,
        )
    if work.last_measured is not None:
        yield from _measured(work.last_measured)


def _measured(receipt: pb.Receipt) -> Iterator[Metric]:
    ua = GaugeMetricFamily("clue_agent_last_ua_ratio", "Accuracy on the class last forgotten.", labels=["when"])
    ra = GaugeMetricFamily("clue_agent_last_ra_ratio", "Accuracy on the retained classes.", labels=["when"])
    for family, before, after in (
        (ua, receipt.ua_before, receipt.ua_after),
        (ra, receipt.ra_before, receipt.ra_after),
    ):
        for when, accuracy in (("before", before), ("after", after)):
            if accuracy.samples:
                family.add_metric([when], accuracy.correct / accuracy.samples)
        yield family
    joules = GaugeMetricFamily("clue_agent_last_energy_joules", "Energy of the last unlearning.", labels=["source"])
    joules.add_metric([receipt.energy.source], receipt.energy.joules)
    yield joules
    yield GaugeMetricFamily(
        "clue_agent_last_unlearning_seconds", "Time of the last unlearning alone.", value=receipt.unlearning_seconds
    )
    yield GaugeMetricFamily(
        "clue_agent_last_peak_memory_bytes", "Peak memory of the last unlearning.", value=receipt.peak_memory_bytes
    )


def _memory() -> Metric:
    family = GaugeMetricFamily(
        "clue_agent_resident_memory_bytes", "Resident memory of the agent's processes.", labels=["process"]
    )
    found: dict[str, float] = {"clue-agent": psutil.Process().memory_info().rss}
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            name = next((word for word in _CHILDREN if word in command), None)
            if name is not None:
                found[name] = found.get(name, 0.0) + child.memory_info().rss
        except psutil.Error:
            continue
    for name, size in found.items():
        family.add_metric([name], size)
    return family


def serve(config: AgentConfig, fleet: str, held: Callable[[], str]) -> WSGIServer:
    """Answer on 127.0.0.1:``config.metrics_port``; the caller shuts it down. AgentError if the port is taken."""
    registry = CollectorRegistry()
    registry.register(DeviceCollector(config, fleet, held))
    ProcessCollector(registry=registry, pid=os.getpid)
    try:
        server, _ = start_http_server(config.metrics_port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise AgentError(
            f"cannot listen on 127.0.0.1:{config.metrics_port} for metrics: {error.strerror}; "
            "set another metrics_port in agent.toml"
        ) from None
    return server


__all__ = ["DeviceCollector", "serve"]
