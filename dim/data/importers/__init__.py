"""Importers of benchmarks as distributed: one function a layout, from the set's folder to a `Benchmark`."""

from collections.abc import Callable

from dim.data.importers.benchmark import Benchmark
from dim.data.importers.cub import cub
from dim.data.importers.gldv2 import gldv2
from dim.data.importers.holidays import holidays
from dim.data.importers.oxford_paris import oxford5k, paris6k
from dim.data.importers.revisited import roxford5k, rparis6k
from dim.data.importers.sop import sop
from dim.data.importers.ukbench import ukbench

LAYOUTS: dict[str, Callable[[str], Benchmark]] = {
    "oxford5k": oxford5k,
    "paris6k": paris6k,
    "roxford5k": roxford5k,
    "rparis6k": rparis6k,
    "holidays": holidays,
    "ukbench": ukbench,
    "gldv2": gldv2,
    "sop": sop,
    "cub": cub,
}
