"""The comparison with other tools: which cases, how they are scored, what messages mean."""

import multiprocessing
import os
import time

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from calibration import peers, peers_kinds
from calibration.cases import Fault, Healthy, Subject
from calibration.faults import FAULTS
from calibration.peers import Case, Share
from calibration.peers_tools import TOOLS, Tool, Verdict
from nndiag.rules import discover


def floats():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return Subject(model, torch.randn(128, 4), torch.arange(128) % 3, F.cross_entropy)


def tokens():
    return floats()._replace(batch=torch.arange(128))


def fault(kind, architecture, form="module", state="init", *, build=floats, **options):
    strength = options.pop("strength", 1.0)
    return Fault(
        name=f"{kind}/{architecture}/{form}/{state}/{strength:g}",
        kind=kind,
        architecture=architecture,
        form=form,
        state=state,
        strength=strength,
        build=build,
        measure=lambda subject: 1.0,
        limit=0.5,
        where=frozenset({"0"}),
        **{"rule": "dead-relu", "sick": True} | options,
    )


def network(name, family, build=lambda seed: floats()):
    return Healthy(name, family, "init", build)


# -- the corpus ------------------------------------------------------------------------------------


def chosen(faults, most=40):
    return [case.name for case in peers.faulty(faults, most)]


def test_of_each_kind_one_and_then_a_second_in_another_architecture():
    faults = [fault(kind, a) for kind in "xy" for a in ("mlp", "cnn")]
    assert chosen(faults) == [
        "x/mlp/module/init/1", "y/cnn/module/init/1", "x/cnn/module/init/1", "y/mlp/module/init/1"
    ]  # fmt: skip


def test_the_architecture_that_has_had_the_fewest_is_next():
    faults = [fault("x", "mlp"), fault("y", "mlp"), *(fault("z", a) for a in ("mlp", "cnn"))]
    assert [name.split("/")[1] for name in chosen(faults)] == ["mlp", "mlp", "cnn", "mlp"]


def test_rules_take_turns_so_that_one_with_many_kinds_does_not_outweigh():
    many = [fault(kind, "mlp", rule="non-finite") for kind in "uvwxyz"]
    few = [fault("a", "mlp"), fault("b", "mlp", rule="symmetry")]
    assert [name[0] for name in chosen([*many, *few], most=5)] == ["u", "a", "b", "v", "w"]


def test_module_and_functional_take_turns():
    faults = [fault(kind, "mlp", form) for kind in "xyz" for form in ("module", "functional")]
    assert [name.split("/")[2] for name in chosen(faults)] == ["module", "functional", "module"]


def test_the_first_listed_strength_at_initialisation_is_taken():
    faults = [
        fault("x", "mlp", state="trained", strength=9),
        fault("x", "mlp", sick=False, strength=8),
        fault("x", "mlp", strength=7),
        fault("x", "mlp", strength=6),
    ]
    assert chosen(faults) == ["x/mlp/module/init/7"]


def test_what_not_every_tool_can_be_given_is_passed_over():
    faults = [
        fault("x", "decoder", build=tokens),
        fault("x", "mlp"),
        fault("y", "decoder", build=tokens),
    ]
    assert chosen(faults) == ["x/mlp/module/init/1"]


def test_healthy_families_take_turns():
    networks = [network(f"{family}{k}", family) for family in "ab" for k in range(3)]
    networks.append(network("c0", "c", lambda seed: tokens()))
    assert [n.family for n in peers.sound(networks, most=5)] == ["a", "b", "a", "b", "a"]


def test_the_real_corpus_is_what_the_page_says(monkeypatch):
    # Some are trained first, which takes its time; all but the decoder's tokens are floats.
    monkeypatch.setattr(peers, "fits", lambda case: case.architecture != "decoder")
    cases = peers.faulty(FAULTS)
    assert all(case.sick for case in cases)
    assert len({(case.kind, case.architecture) for case in cases}) == len(cases) == peers.FAULTY
    assert {case.rule for case in cases} == {case.rule for case in FAULTS}
    assert set(peers_kinds.ACCEPTED_OF) <= {case.kind for case in FAULTS}


# -- judging ---------------------------------------------------------------------------------------


def tool(judge, name="nndiag", package="nndiag"):
    return Tool(name, package, judge, "", "", "")


def test_a_tool_works_on_a_copy_with_the_same_luck_each_time():
    subject, drawn = floats(), []

    def hurt(mine):
        with torch.no_grad():
            mine.model[0].weight.zero_()
        drawn.append(torch.rand(()).item())
        return Verdict([], [])

    peers.judge(tool(hurt), subject)
    peers.judge(tool(hurt), subject)

    assert subject.model[0].weight.abs().min() > 0
    assert drawn[0] == drawn[1]


def test_a_crash_is_no_verdict():
    def fail(subject):
        raise ValueError("no such layer")

    answer = peers.judge(tool(fail), floats())
    assert answer.crash == "ValueError: no such layer"
    assert answer.verdict == Verdict([], [])


def moody(pipe, trouble=""):
    pipe.send(trouble)
    while True:
        question = pipe.recv()
        if question == "die":
            os._exit(1)
        if question == "hang":
            time.sleep(60)
        pipe.send((question, type(multiprocessing.parent_process()).__name__))


@pytest.mark.exhaustive
def test_a_tool_that_hangs_or_dies_is_told_as_such_and_begun_anew(monkeypatch):
    worker = peers.Worker(moody)
    died = worker.answer("die")
    again = worker.answer("hello")
    monkeypatch.setattr(peers, "PATIENCE", 0.1)
    hung = worker.answer("hang")
    assert worker.process is None

    assert (died.crash, hung.crash) == ("the process died", "no answer in 0.1 s")
    assert again == ("hello", "NoneType")  # torchlens does not work in multiprocessing's children


@pytest.mark.exhaustive
def test_a_tool_that_fails_where_nothing_is_wrong_ends_the_run():
    worker = peers.Worker(moody, "it does not like our processes")
    with pytest.raises(RuntimeError, match="nothing is wrong: it does not like our processes"):
        worker.answer("hello")
    assert worker.process is None


def test_layers_are_counted_not_their_parameters():
    places = ["0.weight", "0.bias", "1", "0/relu#2"]
    answer = peers.judge(tool(lambda subject: Verdict(["dead-relu: x"], places)), floats())
    assert answer.layers == 3


def test_an_absent_peer_says_how_to_get_it(monkeypatch):
    absent = tool(None, name="somepeer", package="a-package-nobody-has")
    with pytest.raises(
        ModuleNotFoundError, match=r"somepeer is not installed.*make peers.*nndiag\[peers\]"
    ):
        absent.require()

    monkeypatch.setattr(peers, "TOOLS", [absent])
    app = peers.typer.Typer()
    app.command()(peers.main)
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


# -- scores ----------------------------------------------------------------------------------------


def rows(*lines):
    columns = (
        "tool", "case", "sick", "kind", "rule", "claimed", "alarmed", "named", "placed", "layers",
        "crash", "seconds", "meanings", "said",
    )  # fmt: skip
    return pd.DataFrame(lines, columns=columns)


BY_HAND = rows(
    ("nndiag", "a", True, "x", "dead-relu", True, True, True, True, 1, "", 1.0, "dead", "m"),
    ("nndiag", "b", True, "x", "dead-relu", True, True, False, True, 4, "", 2.0, "loss", "m"),
    ("nndiag", "c", True, "y", "saturation", False, True, False, False, 3, "", 3, "loss; dead", ""),
    ("nndiag", "d", True, "y", "saturation", False, False, False, False, 0, "E: |x|", 4.0, "", ""),
    ("nndiag", "e/seed 0", False, "mlp", "", False, True, False, False, 1, "", 5.0, "loss", "m"),
    ("nndiag", "e/seed 1", False, "mlp", "", False, False, False, False, 0, "", 6.0, "", ""),
    ("nndiag", "f/seed 0", False, "cnn", "", False, False, False, False, 0, "", 7.0, "", ""),
)  # fmt: skip


def test_scores_are_what_one_counts_by_hand():
    score = peers.score(BY_HAND)
    shares = {name: value[:2] for name, value in score.items() if isinstance(value, Share)}
    assert shares == {
        "false": (1, 3),
        "alarmed": (3, 4),
        "telling": (2, 4),  # b says only what it says of a healthy network, too
        "named": (1, 4),
        "placed": (2, 4),
        "claimed_alarmed": (2, 2),
        "claimed_named": (1, 2),
        "claimed_placed": (2, 2),
    }
    assert (score["crashes"], score["seconds"], score["layers"]) == (1, 4.0, "3")


def test_kinds_that_a_tool_claims_nothing_of_are_bracketed():
    assert [(k["kind"], k["cases"], k["cells"]) for k in peers.by_kind(BY_HAND)] == [
        ("x", 2, ["1 / 2"]),
        ("y", 2, ["(0 / 1)"]),
    ]


def test_intervals_are_exact():
    # None of 16: the rate at which that has a chance of 2.5 % is 1 - 0.025 ** (1 / 16).
    assert Share(0, 16).interval == (0.0, pytest.approx(1 - 0.025 ** (1 / 16)))
    assert Share(16, 16).interval == (pytest.approx(0.025 ** (1 / 16)), 1.0)
    assert str(Share(0, 0)) == "–"


def test_the_row_of_a_case_holds_what_was_said_and_whether_it_is_right():
    said = Verdict(["dead-relu: 8 of 8", "no-gradient: none"], ["0.weight", "2"])
    case = Case("x", fault("x", "mlp"))
    row = peers.row(TOOLS[0], case, peers.Answer(said, 2, 1.0, ""))
    assert (row["alarmed"], row["named"], row["placed"]) == (True, True, True)
    assert row["meanings"] == "dead; no gradient"


def test_the_first_finding_has_to_be_the_faults_own_rule():
    leading = next(t for t in TOOLS if t.strict)
    case = Case("x", fault("x", "mlp"))
    near = peers.Answer(Verdict(["no-gradient: none"], ["0.weight"]), 1, 1.0, "")
    right = peers.Answer(Verdict(["dead-relu: 8 of 8"], ["0"]), 1, 1.0, "")
    assert [peers.row(leading, case, answer)["named"] for answer in (near, right)] == [False, True]
    assert peers.row(TOOLS[0], case, near)["named"]


def test_a_message_nobody_knows_is_an_alarm_without_a_cause():
    answer = peers.Answer(Verdict(["new-rule: something"], []), 0, 1.0, "")
    row = peers.row(TOOLS[0], Case("x", fault("x", "mlp")), answer)
    assert (row["alarmed"], row["named"], row["meanings"]) == (True, False, "unknown")


def test_the_page_and_the_table_are_written(tmp_path):
    peers.publish(BY_HAND, tmp_path)
    text = (tmp_path / "peers.md").read_text("utf-8")
    assert "| nndiag | 1 of 3: 33 % (1–91) | 3 of 4: 75 % (19–99) |" in text
    assert "| x | dead-relu | 2 | 1 / 2 |" in text
    assert "E: |x|" not in text  # it would be two more columns
    assert len(pd.read_csv(tmp_path / "peers.csv")) == len(BY_HAND)


# -- meanings --------------------------------------------------------------------------------------


# What the tools said on the corpus and on networks that are broken in other ways.
RECORDED = [
    ("torchtest2", "output_finite: non-finite outputs - output: 320 NaN, 0 inf", "not finite"),
    ("torchtest2", "loss: the loss is nan", "not finite"),
    ("torchtest2", "gradient_magnitude: NaN/inf gradients in 9 parameter(s): layers.0.weight",
     "not finite"),
    ("torchtest2", "initial_loss: initial loss 154.738 is much larger than ln(10) = 2.303", "loss"),
    ("torchtest2", "gradient_flow: 17/18 trainable parameter(s) get an all-zero gradient",
     "no gradient"),
    ("torchtest2", "input_dependency: inputs has no influence on the output (wrong slice",
     "collapsed"),
    ("torchtest2", "output_varies: all 32 samples produce the same output", "collapsed"),
    ("torchtest2", "overfit_batch: the loss decreased (2.398 -> best 1.43, 60% of the initial "
     "value) but did not reach 10%", "not learning"),
    ("torchtest2", "overfit_batch: gradients became NaN/inf at step 3", "not finite"),
    ("torchtest2", "params_change: 4/18 trainable parameter(s) did not change after an optimizer "
     "step: layers.0.weight", "unchanged"),
    ("torchtest2", "params_change: 2/6 trainable parameter(s) did not change - 2 with a gradient "
     "too small to change them (vanishing): a, b", "vanishing"),
    ("torchdiag", "head.weight: gradient max 123.64 — exploding", "exploding"),
    ("torchdiag", "acts.1: 100% neurons dead", "dead"),
    ("torchdiag", "convs.0.bias: gradient max 0.00e+00 — vanishing", "no gradient"),
    ("torchdiag", "convs.0.bias: gradient max 3.10e-09 — vanishing", "vanishing"),
    ("torchdiag", "Loss is nan — not finite", "not finite"),
    ("torchdiag", "No parameters changed — model is not learning", "unchanged"),
    ("torchdiag", "aux.bias: gradient is None — disconnected from graph", "no gradient"),
    ("torchlens", "gradient_flow_audit: gradient-flow anomaly dead", "no gradient"),
    ("torchlens", "gradient_flow_audit: gradient-flow anomaly vanishing", "vanishing"),
    ("torchlens", "dtype_nonfinite: linear_2_3:1 dtype=torch.float32 contains measured non-finite "
     "kind=nan.", "not finite"),
    ("torcheck", "Module net's convs.0.bias should change", "unchanged"),
    ("torcheck", "Module net's output contains NaN", "not finite"),
    ("torch-audit", "TA102: Global gradient norm (101.96) exceeds threshold (100.0).", "exploding"),
    ("torch-audit", "TA105: 100.0% of neurons are dead (outputting 0).", "dead"),
    ("torch-audit", "TA405: Layer 'convs.1' has 32 dead filters (near-zero weights).", "dead"),
    ("torch-audit", "TA500: Layer defined but NEVER called (Zombie).", "unused"),
    ("torch-audit", "TA301: Input values range from 0.0 to 255.0. Expected approx", "other"),
    ("neural-observatory", "activation_statistics: High saturation 54% — many activations near ±1 "
     "(may signal vanishing gradients).", "saturation"),
    ("neural-observatory", "activation_statistics: High sparsity 100% — most activations are near "
     "zero.", "dead"),
    ("neural-observatory", "dead_neurons: 100% of neurons are dead -- this layer contributes "
     "almost nothing to learning.", "dead"),
    ("neural-observatory", "gradient_health: Vanishing gradients -- mean norm 0.00e+00 (absolute "
     "threshold 1.00e-07).", "no gradient"),
    ("neural-observatory", "gradient_health: Gradient norm collapsed recently -- last 25 steps "
     "average 1.08e-04", "vanishing"),
    ("neural-observatory", "anomaly_detection: NaN detected in activations at steps [0, 1].",
     "not finite"),
    ("neural-observatory", "parameter_health: NaN in parameter 'layers.1.weight' -- training is "
     "broken.", "not finite"),
    ("torchmortem", "Activation saturation in acts.7", "saturation"),
    ("torchmortem", "Dead units in convs.2", "dead"),
    ("torchmortem", "Gradient stalling in convs.0", "no gradient"),
    ("torchmortem", "Vanishing gradients detected", "vanishing"),
    ("torchmortem", "Update ratio too low in layers.1", "updates"),
    ("torchmortem", "Inter-layer weight norm imbalance", "weights"),
    ("torchmortem", "Stagnant weight norms", "unchanged"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "message", "meant"), RECORDED)
def test_what_a_message_means(name, message, meant):
    assert peers_kinds.meaning(name, message) == meant


def test_every_tool_has_messages_and_every_message_a_meaning():
    assert {t.name.partition(" ")[0] for t in TOOLS} == set(peers_kinds.TABLE)
    said = {meant for lines in peers_kinds.TABLE.values() for _, meant in lines}
    accepted = set().union(*peers_kinds.ACCEPTED.values(), *peers_kinds.ACCEPTED_OF.values())
    assert said | accepted == set(peers_kinds.MEANINGS)


def test_too_small_is_not_too_large():
    small, large = (fault(k, "mlp", rule="init-scale") for k in ("weights-small", "weights-large"))
    assert peers_kinds.names(large, {"exploding"})
    assert not peers_kinds.names(small, {"exploding"})


def test_every_rule_that_can_alarm_is_read():
    rules = {fault.rule for fault in FAULTS}
    assert rules <= set(peers_kinds.ACCEPTED) <= set(discover())
    for rule in rules:
        own = peers_kinds.meaning("nndiag", f"{rule}: something")
        assert own in peers_kinds.ACCEPTED[rule]


@pytest.mark.parametrize(
    ("place", "right"),
    [("0", True), ("0.weight", True), ("0/relu", True), ("2", False), ("01", False), ("", False)],
)
def test_the_right_place_is_the_layer_or_what_is_part_of_it(place, right):
    assert peers_kinds.right_place(fault("x", "mlp"), [place]) is right
