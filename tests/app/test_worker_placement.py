"""The CPUs and GPUs of workers on simulated clusters: placed one by one, all workers fit."""

import logging
from collections import Counter

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as some

from dim.app import worker_placement
from dim.app.worker_placement import Node
from dim.errors import UserError
from dim.extract import resources

# The head of the shipped cluster before its first worker node.
HEAD = {"CPU": 0, "autoscaled_8CPU_1GPU": 8, "autoscaled_16CPU": 10}
GPU_NODE, DECODER = {"CPU": 8, "GPU": 1}, {"CPU": 16}


@pytest.fixture
def made_up(monkeypatch):
    """A cluster of nodes with these resources."""

    def of(*nodes):
        names = {name for node in nodes for name in node}
        total = {name: sum(node.get(name, 0) for node in nodes) for name in names}
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        listed = [{"Alive": True, "NodeID": f"{place:056x}", "Resources": node} for place, node in enumerate(nodes)]
        monkeypatch.setattr(ray, "nodes", lambda: listed)
        monkeypatch.setattr(ray, "is_initialized", lambda: True)

    return of


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "expected"),
    [
        (({"CPU": 2},), 1, 0, 2),
        (({"CPU": 2},), 2, 0, 1),
        (({"CPU": 7},), 3, 0, 7 / 3),
        (({"CPU": 2}, {"CPU": 2}, {"CPU": 2}), 2, 0, 2),  # each on a node of its own
        (({"CPU": 0}, {"CPU": 8}, {"CPU": 8}), 4, 0, 4),
        (({"CPU": 2}, {"CPU": 16}), 2, 0, 8),  # not 9, for which there is room once
        (({"CPU": 64}, GPU_NODE, GPU_NODE), 2, 1, 8),
        (({"CPU": 64}, GPU_NODE, GPU_NODE), 4, 0.5, 4),
        (({"CPU": 64}, GPU_NODE, GPU_NODE), 4, 1, 8),  # there are GPUs for two
        ((HEAD,), 4, 1, 8),  # nothing is there yet
        ((HEAD, GPU_NODE), 4, 1, 8),
        ((HEAD, *[GPU_NODE] * 9), 9, 1, 8),  # one live node replaces another
        ((HEAD,), 4, 0, 16),
        (({"CPU": 0},), 4, 1, 1),  # nothing is known
    ],
)
def test_a_worker_has_the_share_for_which_there_is_room(made_up, nodes, workers, gpus, expected):
    made_up(*nodes)
    assert worker_placement.cpu_share(workers, gpus) == expected


@pytest.mark.parametrize(
    ("share", "gpus", "expected"),
    [
        (16, 0, 15),
        (2.5, 0, 1),
        (2, 0, 1),
        (8, 1, 1),  # seven decode
        (2, 0.5, 1),
        (1.5, 0, 0.375),
        (1, 1, 0.25),
        (1 / 3, 0, 0.0833),
        (1 / 5000, 0, 0.0001),  # never none, for very many workers
    ],
)
def test_a_worker_leaves_cpus_for_decoding(share, gpus, expected):
    assert worker_placement.worker_cpus(share, gpus) == expected
    assert worker_placement.threads(expected) == int(expected) + 1


def placed(nodes, workers, cpus, gpus):
    """How many workers fit if each in turn is placed on the first node with room for it."""
    left = [[node.cpus, node.gpus] for node in nodes.elements()]
    for done in range(workers):
        free = next((node for node in left if node[0] >= cpus - 1e-6 and node[1] >= gpus), None)
        if free is None:
            return done
        free[0] -= cpus
        free[1] -= gpus
    return workers


sizes = some.builds(Node, some.integers(1, 9).map(float), some.integers(0, 2).map(float))
clusters = some.dictionaries(sizes, some.integers(1, 3), min_size=1, max_size=3).map(Counter)


@given(clusters, some.integers(1, 6), some.sampled_from([0, 0.5, 1]))
def test_a_share_is_the_largest_with_which_all_that_can_find_room(nodes, workers, gpus):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_placement, "known_nodes", lambda: nodes)
        share = worker_placement.cpu_share(workers, gpus)
    most = placed(nodes, workers, 0, gpus)
    assert worker_placement.capacity(nodes, share, gpus) >= placed(nodes, workers, share, gpus)
    if most == 0:
        return
    assert placed(nodes, workers, share, gpus) == most
    assert all(placed(nodes, workers, share + more, gpus) < most for more in (0.01, 0.5, 1, 8))


@given(clusters, some.integers(1, 8), some.sampled_from([0.25, 1, 2.5]), some.sampled_from([0, 0.5, 1]))
def test_room_is_what_is_found_one_after_another(nodes, workers, cpus, gpus):
    assert min(workers, worker_placement.capacity(nodes, cpus, gpus)) == placed(nodes, workers, cpus, gpus)


def test_gpus_that_may_come_count(made_up):
    made_up(HEAD)
    assert (worker_placement.gpus_per_worker(None), worker_placement.gpus_per_worker(0.5)) == (1, 0.5)
    made_up({"CPU": 4})
    assert worker_placement.gpus_per_worker(None) == 0
    made_up({"CPU": 4, "autoscaled_16CPU": 2})
    assert worker_placement.gpus_per_worker(None) == 0


@pytest.mark.parametrize("name", ["autoscaled_gpus", "autoscaled_8CPU_GPU", "autoscaled_1GPU"])
def test_nodes_that_may_come_are_said_in_known_words(made_up, name):
    made_up({"CPU": 0, name: 8})
    with pytest.raises(UserError, match=f"the head node has the resource '{name}', .* as in autoscaled_8CPU_1GPU"):
        worker_placement.known_nodes()


@pytest.mark.parametrize(
    ("nodes", "workers", "said"),
    [
        (
            (HEAD,), 4,
            "waiting for 4 of 4 trainers of 1 GPU and 7 CPUs: the cluster has no node with CPUs, and may grow to "
            "8 × 1 GPU and 8 CPUs, 10 × 16 CPUs",
        ),
        (
            (HEAD, GPU_NODE), 4,
            "waiting for 3 of 4 trainers of 1 GPU and 7 CPUs: the cluster has 1 × 1 GPU and 8 CPUs, and may grow to "
            "8 × 1 GPU and 8 CPUs, 10 × 16 CPUs",
        ),
        (({"CPU": 0},), 1, "waiting for 1 of 1 trainers of 1 GPU and 7 CPUs: the cluster has no node with CPUs"),
        ((GPU_NODE, GPU_NODE), 2, None),
    ],
)  # fmt: skip
def test_what_has_to_wait_is_said(made_up, caplog, nodes, workers, said):
    made_up(*nodes)
    with caplog.at_level(logging.INFO, "dim"):
        worker_placement.require_room("trainer", workers, 7, 1)
    assert caplog.messages == ([said] if said else [])


@pytest.mark.parametrize("nodes", [(HEAD,), (GPU_NODE,), (GPU_NODE, DECODER)])
def test_what_can_never_be_is_refused(made_up, nodes):
    made_up(*nodes)
    said = r"^--gpus-per-worker 2: no node that this cluster has or may start has so many .* \(1 GPU and 8 CPUs.*\)"
    with pytest.raises(UserError, match=said):
        worker_placement.require_room("trainer", 1, 7, 2)


@pytest.mark.parametrize(
    ("nodes", "units", "expected"),
    [
        (({"CPU": 4},), 1, 1),
        (({"CPU": 4},), 3, 3),
        (({"CPU": 4},), 10**6, 4),
        ((HEAD,), 9, 1),  # not worth a second CPU's start
        ((HEAD,), 95, 9),
        ((HEAD,), 10**6, 8 * 8 + 10 * 16),
        ((HEAD, DECODER), 20, 16),
        (({"CPU": 0},), 10**6, 1),
    ],
)
def test_tasks_follow_the_work_and_the_cpus(made_up, nodes, units, expected):
    made_up(*nodes)
    assert worker_placement.task_count(units, worth=10) == expected


@pytest.fixture
def old(monkeypatch):
    """The nodes, by their place in the cluster, that say they support no more than float32."""
    found = set()

    class Task:
        def options(self, scheduling_strategy):
            self.place = int(scheduling_strategy.node_id, 16)
            return self

        def remote(self, _):
            return "float32" if self.place in found else "bfloat16"

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: Task())
    monkeypatch.setattr(ray, "get", lambda answers: answers)
    return found


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ((GPU_NODE, GPU_NODE, {"CPU": 2}), (1, set()), "bfloat16"),
        ((GPU_NODE, GPU_NODE, {"CPU": 2}), (1, {1}), "float32"),  # whichever comes first
        ((GPU_NODE, GPU_NODE, {"CPU": 2}), (1, {0}), "float32"),
        ((GPU_NODE, GPU_NODE, {"CPU": 2}), (1, {2}), "bfloat16"),
        (({"CPU": 0}, DECODER, {"CPU": 2}), (0, {2}), "float32"),
        (({"CPU": 0}, DECODER, {"CPU": 2}), (0, {0}), "bfloat16"),
        ((HEAD,), (1, set()), "bfloat16"),
        ((HEAD, GPU_NODE), (1, {1}), "bfloat16"),  # as before it came
        ((HEAD, DECODER), (0, set()), "float32"),
        (({"CPU": 4, "autoscaled_16CPU": 2}, GPU_NODE), (1, set()), "bfloat16"),  # more GPUs won't come
    ],
)
def test_auto_precision_depends_on_no_single_node(made_up, old, nodes, asked, expected):
    made_up(*nodes)
    gpus, places = asked
    old |= places
    assert resources.resolve_precision("auto", gpus) == expected


def test_a_node_that_lives_counts_once(made_up):
    made_up(HEAD, GPU_NODE, {"CPU": 4})
    assert worker_placement.known_nodes() == {Node(8, 1): 8, Node(16, 0): 10, Node(4, 0): 1}
    assert worker_placement.live_nodes() == {Node(8, 1): 1, Node(4, 0): 1}
