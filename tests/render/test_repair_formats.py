"""A repair in a terminal, as a comment and as a page: the same words, and true ones."""

from __future__ import annotations

import ast
import html.parser
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import repairs
import samples
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_html import SCRIPT, Page
from test_robust import long_names, many_findings, not_finite, nothing, right_to_left

from nndiag.fixes.actions import Action
from nndiag.fixes.trial import Trial
from nndiag.pairing import Pair
from nndiag.render import html as pages
from nndiag.render import losses, repair, side_by_side, terminal
from nndiag.rule import Outcome
from nndiag.stats import Node

MADE = {
    "repaired": repairs.repaired,
    "better": repairs.better,
    "safe": repairs.safe,
    "hopeless": repairs.hopeless,
    "healthy": repairs.healthy,
    "empty": repairs.empty,
    "without gradients": repairs.without_gradients,
    "diverged": lambda: replace(repairs.repaired(), trial=repairs.diverged()),
}
STRANGE = [many_findings, long_names, right_to_left, not_finite, nothing]
every_repair = pytest.mark.parametrize("made", MADE.values(), ids=MADE)


def on_terminal(made, width=100):
    return terminal.plain(repair.terminal(made), width)


FORMATS = {
    "terminal": lambda made: on_terminal(made, 400),
    "markdown": lambda made: html.unescape(repair.markdown(made)),
    "page": lambda made: Page(repair.html(made)).text,
    "fragment": lambda made: Page(repair.fragment(made)).text,
}
every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


# -- the verdict ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("repaired", "Repaired: 8 findings are gone, none is left."),
        ("better", "Better: 7 findings are gone, 1 warning is left."),
        ("safe", "No fix was tried: 1 error and 7 warnings are left."),
        ("hopeless", "No fix helped: 1 error and 7 warnings are left."),
        ("healthy", "Nothing to fix."),
        ("empty", "No rule could run, so nothing can be fixed."),
    ],
)
def test_the_verdict_is_one_sentence(name, text):
    assert repair.verdict(MADE[name]()) == text


def only(*rules, severity="warning"):
    """A report with one finding of each of these rules."""
    report = samples.healthy()
    found = [f for f in samples.sick().findings if f.rule in rules]
    first = [next(f for f in found if f.rule == rule) for rule in rules]
    return replace(report, findings=tuple(replace(f, severity=severity) for f in first))


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (only("dead-relu"), samples.healthy(), "Repaired: 1 finding is gone, none is left."),
        (only("dead-relu"), only("dense-activation", severity="note"),
         "Repaired: 1 finding is gone, only 1 note is left."),
        (only("dead-relu", severity="error"), only("dead-relu"),
         "Better: 1 error before, 1 warning now."),
        (only("dead-relu"), only("dead-relu"), "Better: still 1 warning, but less pronounced."),
        (only("dead-relu", "saturation", "init-scale"), only("dead-relu"),
         "Better: 2 findings are gone, 1 warning is left."),
    ],
)  # fmt: skip
def test_the_verdict_counts_what_was_and_what_is(before, after, text):
    assert repair.verdict(repairs.repair(before, after, repairs.step())) == text


def test_a_repair_claims_no_success_where_a_rule_crashed():
    crashed = Outcome("non-finite", "ND401", "crashed", "ZeroDivisionError: division by zero")
    blind = replace(samples.healthy(), outcomes=(crashed,))

    after = repairs.repair(only("dead-relu"), blind, repairs.step())
    assert repair.verdict(after) == (
        "Better: 1 finding is gone, but 1 rule crashed, so its findings are missing."
    )
    assert "green" not in str(repair._style(after))
    assert 'class="verdict fine"' not in repair.fragment(after)
    assert repair.verdict(repairs.repair(blind, blind)) == (
        "Nothing to fix was found, but 1 rule crashed, so its findings are missing."
    )


@every_format
def test_what_safe_left_out_is_counted_and_the_way_to_it_named(form):
    text = form(repairs.safe())

    assert '3 fixes were not tried. allow="all" (--allow all) tries them.' in text
    assert "3 not tried" in text
    assert "not tried" not in form(repairs.repaired())


@every_format
def test_one_fix_at_several_places_and_at_each_is_told_once(form):
    text = form(repairs.safe())

    assert (
        text.count("dead-relu at encoder.1/relu") - text.count("dead-relu at encoder.1/relu:") == 1
    )
    assert "(1 more like it)" in text


@every_format
def test_a_fix_that_trains_worse_is_not_praised(form):
    better = repairs.trained_better()
    worse = Trial(better.seeds, better.after, better.before)
    made = replace(repairs.repaired(), trial=worse)

    assert "But in the training trial, the repaired model trained worse." in form(made)
    assert "Worse beyond chance" in form(made)
    assert 'class="verdict fine"' not in repair.fragment(made)


# -- all that a reader must get -------------------------------------------------------------------


@every_format
def test_each_format_tells_the_same(form):
    made = repairs.repaired()
    shown = " ".join(form(made).split())

    for step in made.taken:
        for text in (step.fix.what, step.fix.why, step.fix.effect, step.fix.source):
            assert text in shown
        assert step.reason in shown
    for step in made.refused:
        assert step.fix.what in shown
        assert step.reason in shown
    assert losses.verdict(made.trial) in shown
    assert all(line in shown for line in (" ".join(x.split()) for x in made.patch.splitlines()))
    for text in (*made.notes, repair.verdict(made), repair.held_out(made)):
        assert text in shown
    assert "first" in shown.lower()
    assert "error ND301 init-scale at encoder.0.weight" in shown


@pytest.mark.parametrize("form", ["terminal", "markdown", "page"])
def test_what_is_left_is_named(form):
    _, text = FORMATS[form](repairs.better()).rsplit("Findings left", 1)

    assert "110 of 256 units were zero on all 128 samples" in text
    assert "Findings left" not in FORMATS["terminal"](repairs.repaired())


@every_format
def test_where_nothing_was_done_there_is_no_patch(form):
    for made in (repairs.safe(), repairs.hopeless(), repairs.healthy()):
        assert "manual_seed" not in form(made)
        assert "Nothing to change" not in form(made)


def test_the_order_is_the_readers():
    parts = ["Repaired", "before", "after", "layer", "Steps taken", "Fixes not taken",
             "Training trial", "Patch", "Held-out batch"]  # fmt: skip
    text = on_terminal(repairs.repaired())

    places = [re.search(rf"^{part}", text, re.M).start() for part in parts]
    assert places == sorted(places)


def test_the_patch_in_a_terminal_and_in_a_comment_is_python_and_the_repairs_own():
    made = repairs.repaired()
    for text in (
        on_terminal(made).split("that it was created with.\n\n")[1].split("\nnote:")[0],
        repair.markdown(made).split("```python\n")[1].split("```")[0],
    ):
        assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(made.patch))


@pytest.mark.parametrize("width", [40, 60])
def test_a_comment_in_a_patch_is_wrapped_to_comments(width):
    text = terminal.plain(repair.Code("# " + "many words " * 30 + "\nx = 1"), width)

    assert len(text.splitlines()) > 5
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse("x = 1"))


# -- layers, side by side -------------------------------------------------------------------------


def lined_up(made):
    return side_by_side.lined_up(made.before.snapshot, made.after.snapshot)


def test_a_layer_that_moved_into_a_sequential_lines_up_with_what_it_was():
    pairs = lined_up(repairs.repaired())

    assert [(p.old.name if p.old else None, p.new.name if p.new else None) for p in pairs] == [
        ("encoder.0", "encoder.0"),
        ("encoder.1/relu", "encoder.1/relu"),
        (None, "encoder.2.0"),
        ("encoder.2", "encoder.2.1"),
        ("decoder.mlp.up", "decoder.mlp.up"),
        ("head", "head"),
    ]


def with_layers(report, *layers):
    layers = tuple(replace(layer, node=i) for i, layer in enumerate(layers, 1))
    nodes = (Node("input"), *(Node(r.op, (i,), i) for i, r in enumerate(layers)))
    snapshot = replace(report.snapshot, layers=layers, nodes=nodes, outputs=(len(layers),))
    return replace(report, snapshot=snapshot)


@given(st.lists(st.sampled_from(["kept", "gone", "new", "wrapped"]), max_size=12))
def test_each_layer_is_in_one_pair_and_each_side_in_the_order_of_the_network(fates):
    old, new = [], []
    values = samples.stats(np.ones((2, 4)))
    for i, fate in enumerate(fates):
        tanh = samples.layer(f"a{i}", "tanh", "Tanh", input=values)
        norm = samples.layer(f"a{i}.0", "batch_norm", "BatchNorm1d")
        relu = samples.layer(f"a{i}.1", "relu", "ReLU", input=values)
        old += [] if fate == "new" else [tanh]
        new += {"gone": [], "wrapped": [norm, relu]}.get(fate, [tanh])
    both = [with_layers(samples.healthy(), *layers) for layers in (old, new)]

    pairs = lined_up(repairs.repair(*both))

    # Sides of pairs are the layers themselves; which are whose, the names tell.
    assert [p.new.name for p in pairs if p.new] == [layer.name for layer in new]
    assert sorted(p.old.name for p in pairs if p.old) == sorted(layer.name for layer in old)
    for pair in pairs:
        if pair.new is not None and pair.new.op == "relu":
            assert pair.old is None or pair.old.name == pair.new.name.removesuffix(".1")


def test_what_changed_most_comes_first_and_what_is_new_or_gone_last():
    def scaled(name, std):
        return samples.layer(name, output=samples.stats(std * np.array([[-1.0, 1], [1, -1]])))

    before = [scaled(n, 1.0) for n in "abcd"] + [scaled("gone", 1.0)]
    after = [scaled(n, s) for n, s in zip("abcd", (1.0, 1e-3, 2.0, 0.0), strict=True)]
    pairs = [Pair(a, b) for a, b in zip(before, [*after, None], strict=True)]

    found = side_by_side.rows([*pairs, Pair(None, scaled("new", 1.0))])

    assert [row.name for row in found] == ["d", "b", "c", "a", "gone", "new"]


def test_shares_are_of_saturated_values_and_of_dead_units():
    cells = {row.name: row for row in side_by_side.rows(lined_up(repairs.repaired()))}

    assert cells["encoder.1/relu"].before[2] == 0.25  # one of four units never open
    assert cells["encoder.2 → encoder.2.1"].before[2] == 24 / 32
    assert cells["encoder.2 → encoder.2.1"].after[2] == 0.0
    assert math.isnan(cells["head"].before[2])


def test_the_terminal_shows_a_dozen_layers_and_counts_the_rest():
    text = on_terminal(repairs.large(200))

    assert sum(line.startswith("blocks.") for line in text.splitlines()) == 12
    assert "and 188 more layers" in text
    assert text.count("\n") < 100


# -- the training trial ---------------------------------------------------------------------------


def made_trial(before, after, steps=40):
    return Trial(
        tuple(range(len(before))), repairs.decaying(before, steps), repairs.decaying(after, steps)
    )


@pytest.mark.parametrize(
    ("trial", "text"),
    [
        (repairs.trained_better(), "Better beyond chance: "),
        (repairs.tie(), "No difference beyond chance: "),
        (made_trial((0.5,), (0.01,)), "Undecided (one run each): "),
        (made_trial((0.5, 0.6), (0.5, 0.6)), "No difference: "),
        (made_trial((0.5, 0.5), (0.1, 0.1)), "Better: "),
        (made_trial((0.1, 0.1), (0.5, 0.5)), "Worse: "),
        (
            made_trial((0.500, 0.510, 0.490), (0.499, 0.509, 0.489)),
            "Too small a difference to matter: ",
        ),
    ],
)
def test_the_trials_verdict_in_words(trial, text):
    assert losses.verdict(trial).startswith(text)


def test_the_final_losses_are_their_mean_and_range_over_the_seeds():
    trial = repairs.trained_better()
    last = [side[:, -4:].mean(axis=1) for side in (trial.before, trial.after)]

    for final, values in zip(losses.finals(trial), last, strict=True):
        assert final.mean == pytest.approx(np.mean(values))
        assert (final.low, final.high) == pytest.approx((min(values), max(values)))
    assert "over 3 seeds, p < 0.001" in losses.verdict(trial)
    assert "p = " in losses.verdict(repairs.tie())
    alike = losses.verdict(made_trial((0.5, 0.5), (0.1, 0.1)))
    assert alike.endswith("over 2 seeds, all with the same result: nothing here is random.")


def test_runs_that_diverged_are_counted_and_kept_out_of_the_mean():
    trial = repairs.tie()
    lost = trial.before.copy()
    lost[1, 30:] = np.nan
    some, none = losses.finals(Trial(trial.seeds, lost, trial.after))

    assert some.mean == pytest.approx(lost[[0, 2], -4:].mean())
    assert str(some).endswith(", 1 of 3 diverged")
    assert "diverged" not in str(none)
    assert losses.verdict(repairs.diverged()) == (
        "Better beyond chance: before, all 3 runs diverged; after, 0.53 (0.428 to 0.632), "
        "over 3 seeds."
    )


def test_both_curves_are_on_one_scale_as_wide_as_asked():
    before, after = repair.curves(made_trial((2.0, 2.0), (0.5, 0.5), 400), 30)

    assert len(before) == len(after) == 30
    assert before[0] == after[0] == "█"
    assert after[-1] == "▁"
    assert before[-1] in "▇▆▅"
    assert list(after) == sorted(after, reverse=True)


def test_losses_over_two_decades_are_drawn_by_their_logarithms():
    _, after = repair.curves(made_trial((2.0, 2.0), (1e-4, 1e-4), 320), 32)

    # By its logarithm an exponential is straight: each of the eight heights as often.
    counts = [after.count(block) for block in "▁▂▃▄▅▆▇█"]
    assert max(counts) - min(counts) <= 1


def test_a_curve_ends_where_the_last_seed_diverges():
    before, after = repair.curves(repairs.diverged(), 40)

    assert len(before) == 26
    assert before.endswith("×")
    assert "×" not in after
    assert len(after) == 40


@given(
    st.integers(1, 4),
    st.integers(1, 500),
    st.integers(1, 60),
    st.sampled_from([0.0, -1.0, 1.0, 1e100, math.nan, math.inf]),
)
def test_any_losses_make_curves_and_a_chart(seeds, steps, width, odd):
    values = np.random.default_rng(seeds + steps).normal(size=(2, seeds, steps))
    values[0, 0, steps // 2 :] = odd
    trial = Trial(tuple(range(seeds)), *values)

    for curve in repair.curves(trial, width):
        assert 1 <= len(curve) <= width
        assert set(curve) <= set("▁▂▃▄▅▆▇█×")
    drawn = losses.chart(trial)
    assert losses.verdict(trial)
    for side in drawn["losses"].values():
        for line in (*side["seeds"], side["mean"]):
            assert len(line) == len(drawn["steps"]) <= losses.MOST_POINTS


def test_a_long_run_is_drawn_as_the_means_of_neighbours():
    trial = Trial((0,), np.arange(1000.0)[None], np.full((1, 1000), np.nan))
    drawn = losses.chart(trial)

    assert drawn["losses"]["before"]["mean"] == [
        pytest.approx(np.arange(5 * i, 5 * i + 5).mean(), rel=1e-3) for i in range(200)
    ]
    assert drawn["losses"]["after"]["mean"] == [None] * 200
    assert drawn["steps"][0] == 3.0


# -- safe, sound and small ------------------------------------------------------------------------


@every_repair
def test_every_repair_renders_soundly_in_every_format(made):
    made = made()

    for width in (40, 80, 200):
        assert max(map(len, on_terminal(made, width).splitlines())) <= width
    assert "None" not in repair.markdown(made)
    for text in (repair.html(made), repair.fragment(made)):
        page = Page(text)
        assert "None" not in page.text
        assert all(v.startswith("#") for name, v in page.attributes if name == "href")
        assert not re.search(r"url\(|@import|https?:", SCRIPT.sub("", text))


@every_format
@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
def test_far_more_and_far_stranger_than_anybody_expects_renders(form, make):
    report = make()

    for made in (
        repairs.repair(samples.sick(), report, repairs.step()),
        repairs.repair(report, samples.healthy(), repairs.step()),
        repairs.repair(report, report, repairs.step(taken=False)),
    ):
        assert "Traceback" not in form(made)
        assert len(repair.markdown(made).encode("utf-8", "replace")) <= 60_000


HOSTILE = ["<script>alert(1)</script>", "\"' onload=alert(1) {{ 7 * 7 }}", "a\x1b[31mred\x07\nb",
           "[bold]x[/bold]", "```\n# no\n```", "</details> | *x*", "encoder.layer_" * 40,
           "شبكة.\u202eטבקה\u202c.層.\U0001f9e0", ""]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_of_any_kind_are_names(name):
    made = repairs.hostile(name)

    for render in (repair.html, repair.fragment):
        text = render(made)
        page = Page(SCRIPT.sub("", text))
        assert "alert" not in "".join(body for kind, body in SCRIPT.findall(text) if not kind)
        assert not [a for a, _ in page.attributes if a.startswith("on")]
        assert "49" not in page.text
    markdown = repair.markdown(made)
    outside = re.sub(r"^(`{3,}).*?^\1$", "", markdown, flags=re.M | re.S)
    assert "<script" not in outside
    assert "`" not in outside
    assert set(re.findall(r"</?[a-z]+>", outside)) <= {
        "<details>", "</details>", "<summary>", "</summary>"
    }  # fmt: skip
    shown = on_terminal(made)
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_square_brackets_are_no_markup():
    bracketed, other = "[bold]x[/bold]", "(bold)x(/bold)"

    text = on_terminal(repairs.hostile(bracketed), 400)
    assert text.replace(bracketed, other) == on_terminal(repairs.hostile(other), 400)


def test_colour_adds_nothing_to_the_words():
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, color_system="truecolor", width=100, legacy_windows=False
    )
    console.print(repair.terminal(repairs.repaired()))
    coloured = out.getvalue()

    assert "\x1b[1;32mRepaired" in coloured
    assert re.search(r"\x1b\[\d+mfrom\x1b", coloured)  # the patch is highlighted
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert plain.rstrip("\n") == on_terminal(repairs.repaired())


@pytest.mark.parametrize(
    ("layers", "most"), [(100, 1_500_000), (1000, 4_000_000)], ids=["100 layers", "1,000 layers"]
)
def test_a_page_is_not_large_and_a_comment_fits(layers, most):
    made = repairs.large(layers)
    text = repair.html(made)

    assert text.count('<tr id="L') == layers
    assert len(text.encode()) <= most
    assert len(repair.markdown(made).encode()) <= 60_000


def test_a_comment_with_much_to_tell_is_cut_to_fit_and_says_so():
    reasons = [f"{i} {'<' * 600}" for i in range(200)]
    steps = [repairs.step(reason=reason, taken=False) for reason in reasons]

    text = repair.markdown(repairs.repair(samples.sick(), samples.sick(), *steps))

    assert len(text.encode()) <= 60_000
    assert "more, in the page" in text


def test_a_patch_too_long_for_a_comment_is_not_cut_but_left_to_the_page():
    many = Action("set-zeros", tuple(f"x{i * i}" for i in range(20_000)))
    long = replace(repairs.REDRAW, actions=(many,))
    made = repairs.repair(samples.sick(), samples.healthy(), repairs.step(fix=long))

    text = repair.markdown(made)
    assert len(text.encode()) <= 60_000
    assert "print(repair.patch)" in text
    assert "x361" not in text
    assert f"x{19_999**2}" in repair.html(made)


def test_every_script_of_the_page_is_ours_or_one_that_we_ship():
    shipped = [pages._script(n) for n in ("vendor/plot.js", "vendor/tablesort.js", "page.js")]
    text = repair.html(repairs.repaired())

    assert [body for kind, body in SCRIPT.findall(text) if not kind] == shipped
    assert "<script" not in repair.fragment(repairs.repaired())


def test_both_pictures_are_on_the_same_scales():
    import json

    made = repairs.repaired()
    data = [json.loads(body) for kind, body in SCRIPT.findall(repair.html(made)) if kind]
    before, after = data[:2]

    for name in ("reach", "decades", "rows", "longest"):
        assert before[name] == after[name]
    lines = [{layer["name"]: layer["row"] for layer in side["layers"]} for side in (before, after)]
    assert lines[0]["encoder.2"] == lines[1]["encoder.2.1"]
    assert sorted(lines[1].values()) == list(range(6))
