"""The flag --memory."""

import pytest

from dim.app import memory
from dim.app.memory import MemoryOptions, budget, parsed
from dim.errors import UserError


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512 * 10**6), ("8GB", 8 * 10**9), ("1.5GiB", 3 * 2**29), ("2t", 2 * 10**12), ("4 g", 4 * 10**9)],
)
def test_sizes(text, size):
    assert parsed(text) == size


@pytest.mark.parametrize("text", ["", "GB", "8XB", "-1GB", "1e3", "100MB", "0", "nan"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(UserError, match="--memory"):
        parsed(text)


def test_a_budget_is_shared_by_a_task_per_cpu_and_the_driver(monkeypatch):
    monkeypatch.setattr(memory, "_nodes", lambda: [(64 * 10**9, 7), (16 * 10**9, 3)])
    assert budget(None) == memory.Budget(16 * 10**9, 4)
    assert budget(None).share == 2 * 10**9
    assert budget("8GB") == memory.Budget(8 * 10**9, 8)
    assert MemoryOptions(memory="1TB").budget == budget(None)


def test_the_machine_is_the_only_node_without_ray(monkeypatch):
    monkeypatch.setattr(memory.sys, "modules", {})
    monkeypatch.setattr(memory, "machine", lambda: 10**9)
    assert budget(None).node == 10**9
