"""Reading the data flow, against a naive search over random graphs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nndiag
from nndiag import flow, graph
from nndiag.stats import Loss, Node, Snapshot


def snapshot_of(*nodes, outputs=()):
    made = tuple(Node(op, tuple(inputs)) for op, inputs in nodes)
    return Snapshot("Net", (), made, (), {}, Loss("none"), 1, 1, outputs=tuple(outputs))


@st.composite
def graphs(draw, ops=("linear",)):
    """Directed acyclic graphs in order, with inputs, constants and outputs anywhere."""
    size = draw(st.integers(1, 9))
    nodes = [("input", ())]
    for index in range(1, size):
        inputs = draw(st.sets(st.integers(0, index - 1), max_size=3))
        op = "input" if not inputs and draw(st.booleans()) else draw(st.sampled_from(ops))
        nodes.append((op, sorted(inputs)))
    outputs = draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=2))
    return snapshot_of(*nodes, outputs=sorted(outputs))


def paths(snapshot):
    """Every path from an input to an output, by walking them all."""

    def walk(node):
        if node in snapshot.outputs:
            yield [node]
        for user, n in enumerate(snapshot.nodes):
            if node in n.inputs:
                for rest in walk(user):
                    yield [node, *rest]

    for index, node in enumerate(snapshot.nodes):
        if node.op == "input":
            yield from walk(index)


@given(graphs())
def test_the_only_path_is_what_all_paths_share(snapshot):
    found = list(paths(snapshot))
    for node in range(len(snapshot.nodes)):
        assert graph.only_path(snapshot, node) == (bool(found) and all(node in p for p in found))


@given(graphs(), st.frozensets(st.integers(0, 8), max_size=3))
def test_some_nodes_are_the_only_way_if_every_path_meets_one_of_them(snapshot, nodes):
    found = list(paths(snapshot))
    expected = bool(found) and all(nodes & set(path) for path in found)
    assert graph.only_path_through_any(snapshot, nodes) == expected


@given(graphs())
def test_ancestors_and_descendants_are_what_a_search_finds(snapshot):
    def search(node):
        direct = set(snapshot.nodes[node].inputs)
        return direct.union(*(search(n) for n in direct))

    for node in range(len(snapshot.nodes)):
        assert graph.ancestors(snapshot, node) == search(node)
        assert graph.descendants(snapshot, node) == {
            n for n in range(len(snapshot.nodes)) if node in search(n)
        }


@given(graphs(), st.frozensets(st.integers(0, 8), max_size=3))
def test_a_way_out_passes_none_of_the_stops_behind_its_start(snapshot, stops):
    def leads_out(node):
        users = (u for u, n in enumerate(snapshot.nodes) if node in n.inputs and u not in stops)
        return node in snapshot.outputs or any(map(leads_out, users))

    nodes = range(len(snapshot.nodes))
    assert graph.reaches_output(snapshot, stops) == [leads_out(node) for node in nodes]


@given(graphs(), st.sets(st.integers(0, 8), max_size=3))
def test_related_are_those_before_and_behind_one_of_them(snapshot, some):
    some = {node for node in some if node < len(snapshot.nodes)}
    around = [graph.ancestors(snapshot, n) | graph.descendants(snapshot, n) for n in some]
    assert graph.related(snapshot, graph.bits(some)) == graph.bits(some.union(*around))


@given(graphs())
def test_a_bypass_is_what_a_walk_finds(snapshot):
    """From what a layer reads, and what lies before that in a row, to what lies behind it."""
    for layer, node in enumerate(snapshot.nodes):
        starts = list(node.inputs)
        for start in starts:
            if len(snapshot.nodes[start].inputs) == 1:
                starts += snapshot.nodes[start].inputs
        behind, todo, reached = graph.descendants(snapshot, layer), starts, set()
        while todo:
            users = {*snapshot.consumers[todo.pop()]} - {layer} - reached
            reached |= users
            todo += users - behind
        assert graph.bypassed(snapshot, SimpleNamespace(node=layer)) == bool(reached & behind)


@given(graphs(ops=("linear", "dropout", "flatten")))
def test_a_source_is_what_is_read_looking_through_what_hands_on(snapshot):
    for node, source in enumerate(flow.source_nodes(snapshot)):
        found = node
        while found >= 0 and (found == node or snapshot.nodes[found].op in flow.TRANSPARENT):
            inputs = snapshot.nodes[found].inputs
            found = inputs[0] if len(inputs) == 1 else -1
        assert source == found


def test_what_is_known_of_a_snapshot_is_forgotten_with_it():
    import gc
    import weakref

    snapshot = snapshot_of(("input", ()), ("linear", (0,)), outputs=(1,))
    graph.only_path(snapshot, 1)
    gone = weakref.ref(snapshot)
    del snapshot
    gc.collect()

    assert gone() is None


class Net(nn.Module):
    """Two plain layers, a residual block, a gate and a head."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.gate, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.tanh(self.b(x))
        x = x + torch.relu(self.c(x))
        x = x * torch.sigmoid(self.gate(x))
        return torch.softmax(self.head(self.norm(x)), -1)


@pytest.fixture(scope="module")
def snapshot():
    torch.manual_seed(0)
    return nndiag.check(Net(), torch.randn(16, 8), config=False).snapshot


def test_a_chain_ends_where_paths_join_or_part(snapshot):
    found = {
        tuple(link.layer.name for link in chain.links): chain for chain in flow.chains(snapshot)
    }
    assert set(found) == {("a", "b"), ("c",), ("gate",), ("head",)}
    assert found[("a", "b")].ends == "branch"
    assert found[("c",)].ends == "add"
    assert found[("gate",)].ends == "mul"
    assert found[("head",)].starts == "layer_norm"


def test_roles_are_what_the_values_are_used_for(snapshot):
    roles = {
        layer.op: flow.role(snapshot, layer)
        for layer in snapshot.layers
        if layer.op in ("relu", "tanh", "sigmoid", "softmax") and layer.name != "/relu#2"
    }
    assert roles == {"relu": "hidden", "tanh": "hidden", "sigmoid": "gate", "softmax": "output"}


def test_a_residual_branch_is_not_the_only_path_and_what_joins_it_is(snapshot):
    node = {layer.name: layer.node for layer in snapshot.layers}
    assert graph.only_path(snapshot, node["b"])
    assert not graph.only_path(snapshot, node["c"])
    assert graph.only_path(snapshot, node["norm"])


@pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.AvgPool1d(2), nn.Dropout(0.1), nn.Identity()])
def test_a_chain_goes_through_what_only_hands_on(pool):
    model = nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.ReLU(), pool, nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.LazyLinear(2),
    )  # fmt: skip
    x = torch.randn(8, 3, 16)
    model(x)
    [chain] = flow.chains(nndiag.check(model, x, config=False).snapshot)
    assert [link.layer.name for link in chain.links] == ["0", "3", "6"]
    assert [link.activation and link.activation.name for link in chain.links] == ["1", "4", None]


def test_a_bypass_joins_again_and_two_heads_do_not(snapshot):
    rows = {layer.name: layer for layer in snapshot.layers}
    assert graph.bypassed(snapshot, rows["c"])
    assert graph.bypassed(snapshot, rows["gate"])
    assert not graph.bypassed(snapshot, rows["b"])

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(8, 3)

        def forward(self, x):
            x = F.relu(self.body(x))
            return self.left(x), self.right(x)

    two = nndiag.check(TwoHeads(), torch.randn(16, 8), config=False).snapshot
    assert not any(graph.bypassed(two, row) for row in two.layers)


@pytest.mark.parametrize(
    ("layer", "x", "width"),
    [(nn.Linear(8, 4), torch.randn(16, 8), 8), (nn.Conv2d(3, 5, 3), torch.randn(16, 3, 9, 9), 3)],
    ids=["features", "channels"],
)
def test_the_width_of_a_layer_is_its_features_or_its_channels(layer, x, width):
    model = nn.Sequential(nn.Identity(), layer)
    row = nndiag.check(model, x, config=False).snapshot.by_name["1"]
    assert flow.width(row) == width
