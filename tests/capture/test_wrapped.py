"""Models that others have wrapped: compiled, scripted, traced, parallel, sharded."""

from __future__ import annotations

import models
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from bitwise import untouched
from oracle import look, plain, row, rows, same_numbers
from torch import nn

import nndiag


def same_as_bare(snapshot, bare, prefix=""):
    """Every row of the bare model is there under the prefix, with the same numbers."""
    for layer in bare.layers:
        twin = row(snapshot, prefix + layer.name)
        assert (twin.op, twin.shape) == (layer.op, layer.shape)
        assert twin.output.mean == pytest.approx(layer.output.mean)
        assert twin.grad.rms == pytest.approx(layer.grad.rms)
    assert len(snapshot.parameters) == len(bare.parameters)
    for parameter, twin in zip(bare.parameters, snapshot.parameters, strict=True):
        assert twin.grad.rms == pytest.approx(parameter.grad.rms)
        assert twin.used


# -- compiled ---------------------------------------------------------------------------------


@pytest.fixture(params=["stance", "older torch"])
def compiled_times(request, monkeypatch):
    """Counts compilations; once as it is, once as torch 2.4 and 2.5, which know no stance."""
    times = []

    def backend(graph, inputs):
        times.append(graph)
        return graph.forward

    import torch._dynamo

    torch._dynamo.reset()
    if request.param == "older torch":
        monkeypatch.delattr(torch.compiler, "set_stance")
    yield times, backend
    torch._dynamo.reset()


def test_a_compiled_model_is_seen_as_the_bare_one_and_nothing_is_compiled(compiled_times):
    times, backend = compiled_times
    case = models.make("called-twice")
    bare = look(*case)
    snapshot = look(torch.compile(case.model, backend=backend), case.batch, case.loss_fn)

    assert times == []
    same_as_bare(snapshot, bare, "_orig_mod.")


def test_a_model_that_was_compiled_before_runs_eagerly_and_stays_compiled(compiled_times):
    times, backend = compiled_times
    case = models.make("called-twice")
    bare, x = look(*case), case.batch[0]
    compiled = torch.compile(case.model, backend=backend)
    compiled(x)
    before = len(times)
    assert before > 0

    snapshot = look(compiled, case.batch, case.loss_fn)
    assert len(times) == before
    same_as_bare(snapshot, bare, "_orig_mod.")

    compiled(x)
    assert len(times) == before


def test_a_compiled_submodule_and_a_compiled_function_are_seen(compiled_times):
    times, backend = compiled_times

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.compile(nn.Linear(6, 6), backend=backend)
            self.own = nn.Linear(6, 6)
            self.own.compile(backend=backend)
            self.act = torch.compile(lambda x: F.relu(x), backend=backend)

        def forward(self, x):
            return self.act(self.own(self.body(x)))

    snapshot = look(Parts(), torch.randn(8, 6))

    assert times == []
    assert rows(snapshot) == ["body._orig_mod", "own", "/relu"]


# -- TorchScript and fx -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scripted", "traced"])
def test_a_script_is_one_row_and_its_inside_is_said_not_to_be_seen(name):
    case = models.make(name)
    out = case.model(case.batch)
    snapshot = look(case.model, case.batch)

    script = "0" if name == "scripted" else "(root)"
    layer = row(snapshot, script)
    assert snapshot.not_observed == (f"{script}: a ScriptModule; its inside is not seen",)
    assert layer.kind == "Sequential"
    same_numbers(snapshot.layers[-1].output, out)
    assert layer.grad is not None
    assert all(p.used and p.grad is not None for p in snapshot.parameters)
    assert snapshot.never_called == ()


def test_the_parameters_of_a_script_are_used_even_where_no_gradient_is_asked_for():
    case = models.make("scripted")
    report = nndiag.check(case.model, case.batch, select="ND103", config=False)

    assert all(p.used for p in report.snapshot.parameters)


def test_a_script_of_two_inputs_gets_both(recwarn):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 3)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.body(a) + b

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *a, **k: None)  # torch.jit is deprecated, and in use
        script = torch.jit.script(Two())
    snapshot = look(script, (torch.randn(8, 6), torch.randn(8, 3)))

    assert list(snapshot.inputs) == ["input.a", "input.b"]


def test_a_graph_module_is_seen_like_the_module_it_was_traced_from():
    case, bare = models.make("fx-traced"), look(*models.make("called-twice"))

    same_as_bare(look(*case), bare)


# -- parallel ---------------------------------------------------------------------------------


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/peers", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_data_parallel_without_devices_hands_on(recwarn):
    case = models.make("data-parallel")
    bare = look(case.model.module, case.batch, case.loss_fn)

    same_as_bare(look(*case), bare, "module.")


def test_data_parallel_runs_on_one_device_where_it_is_seen():
    class Spreads(nn.DataParallel):
        """Says on how many devices it would run; there is none here."""

        def forward(self, *inputs):
            used.append(len(self.device_ids))
            return self.module(*inputs)

    used, model = [], Spreads(models.mlp(nn.ReLU()))
    model.device_ids = [0, 1, 2]

    snapshot = look(model, [(torch.randn(8, 6),)] * 2)

    assert set(used) == {1}
    assert model.device_ids == [0, 1, 2]
    assert rows(snapshot) == ["module.0", "module.1", "module.2"]


def test_a_wrapper_that_takes_anything_asks_for_what_its_child_takes():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 3)

        def forward(self, left, right):
            return self.body(left) + right

    batch = (torch.randn(8, 6), torch.randn(8, 3))
    for wrapped in (nn.DataParallel(Two()), torch.compile(Two(), backend="eager")):
        assert list(look(wrapped, batch).inputs) == ["input.left", "input.right"]


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel_is_seen_and_goes_on_training():
    case = models.make("called-twice")
    bare = look(*case)
    model = nn.parallel.DistributedDataParallel(case.model)
    x, y = case.batch

    same_as_bare(look(model, case.batch, case.loss_fn), bare, "module.")

    for _ in range(3):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nndiag.check(model, case.batch, loss_fn=case.loss_fn, config=False, select="ND103")
    expected = plain(*models.make("called-twice"))
    for name, p in model.module.named_parameters():
        torch.testing.assert_close(p.grad, expected.parameters[name])


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("select", [None, "ND103"])
def test_fully_sharded_modules_are_seen_and_go_on_training(select):
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # torch 2.4 and 2.5
        from torch.distributed._composable.fsdp import fully_shard

    case = models.make("called-twice")
    bare = look(*case, select=select)
    mesh = init_device_mesh("cpu", (1,))
    for layer in (case.model.second, case.model):
        fully_shard(layer, mesh=mesh)
    x, y = case.batch

    snapshot = look(*case, select=select)

    if select is None:
        same_as_bare(snapshot, bare)
        assert [layer.weight and layer.weight.name for layer in snapshot.layers] == [
            layer.weight and layer.weight.name for layer in bare.layers
        ]
    expected = plain(*models.make("called-twice"))
    F.cross_entropy(case.model(x), y).backward()
    for name, p in case.model.named_parameters():
        torch.testing.assert_close(p.grad.full_tensor(), expected.parameters[name])


# -- other people's layers --------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt():
    transformers = pytest.importorskip("transformers", reason="an optional dependency of the tests")
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, attn_implementation="sdpa",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config)


def test_a_model_of_a_library_is_seen_down_to_its_own_kind_of_layer(gpt):
    ids = torch.randint(0, 50, (6, 9))
    snapshot = look(gpt, {"input_ids": ids, "labels": ids, "output_hidden_states": True})

    loss = gpt(input_ids=ids, labels=ids).loss
    loss.backward()
    assert snapshot.loss.kind == "output.loss"
    assert snapshot.loss.value == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, p in gpt.named_parameters():
        same_numbers(snapshot.parameter[name].grad, p.grad, rel=1e-3)
    gpt.zero_grad()

    weight = row(snapshot, "transformer.h.0.attn.c_attn/linear").weight
    assert (weight.name, weight.unit_axis) == ("transformer.h.0.attn.c_attn.weight", 1)
    assert (weight.fan_in, weight.fan_out) == (16, 48)
    attention = row(snapshot, "transformer.h.1.attn/scaled_dot_product_attention")
    assert attention.facts["rows_count"] == 6 * 2 * 8  # the first query sees but one key
    assert attention.location.rpartition(":")[0].endswith(".py")
    assert row(snapshot, "lm_head").weight.name == "transformer.wte.weight"
    # The fused kernel drops by itself.
    assert snapshot.never_called == tuple(
        f"transformer.h.{block}.attn.attn_dropout" for block in (0, 1)
    )
    assert {layer.output.samples for layer in snapshot.layers} <= {6, 1}  # positions: one sample


def test_a_library_that_patches_its_modules_as_they_run_leaves_them_as_they_were(gpt):
    ids = torch.randint(0, 50, (6, 9))

    with untouched(gpt, ids):
        look(gpt, {"input_ids": ids, "output_hidden_states": True, "output_attentions": False})
