"""Measure every unlearning method on your own images, against retraining without the class.

::

    report = bench(BenchOptions(data, weights, ("bird",), ("clue", "delete"), oracle_weights=oracle))
    for table in tables(report):
        print(table)

Each run happens in a fresh process, see :mod:`clue.bench.worker`. The command is
``clue bench``.
"""

from clue.bench._job import QUICK, Sizes, WorkerJob
from clue.bench._options import BenchOptions, default_cache
from clue.bench._run import bench
from clue.bench._runner import Reporter
from clue.bench._table import tables
from clue.data.decoded import ImageSource, MappedImages, decode, mapped, open_source

__all__ = [
    "QUICK",
    "BenchOptions",
    "ImageSource",
    "MappedImages",
    "Reporter",
    "Sizes",
    "WorkerJob",
    "bench",
    "decode",
    "default_cache",
    "mapped",
    "open_source",
    "tables",
]
