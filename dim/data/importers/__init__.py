"""Importers of benchmarks as distributed: one function a layout, from the set's folder to a `Benchmark`."""

# The module of each layout, in which the function has the layout's name.
LAYOUTS = {
    "oxford5k": "oxford_paris",
    "paris6k": "oxford_paris",
    "roxford5k": "revisited",
    "rparis6k": "revisited",
    "holidays": "holidays",
    "ukbench": "ukbench",
    "gldv2": "gldv2",
    "sop": "sop",
    "cub": "cub",
}
