from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
import samples
from rich.console import Console

from nndiag.fixes.actions import Action
from nndiag.fixes.fix import Fix, advice
from nndiag.render import terminal
from nndiag.rule import Finding


def text(report, width=100):
    return terminal.plain(terminal.render(report), width)


def block(report, head):
    """The lines of one block, by how its first one begins."""
    lines = text(report).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    return lines[start : lines.index("", start)]


def test_the_first_fix_is_shown_with_its_lines_and_the_others_are_counted():
    names = tuple(f"block.{n * n}.weight" for n in range(30))
    first = Fix("reset-bias", "Set them.", actions=(Action("set-zeros", names),))
    swap = Fix("swap-activation", "Swap.", actions=(Action("swap", ("act",), ("ReLU",)),))
    text = advice("Clean the data.")
    report = samples.sick()
    [root, *rest] = report.findings

    def shown(*fixes):
        findings = (replace(root, fixes=fixes), *rest)
        lines = block(replace(report, findings=findings), "error[ND301]")
        return [line for line in lines if line.startswith(("   = fix", "    ", "   = 1", "   = 2"))]

    code = first.code().splitlines()
    assert len(code) > 9
    assert shown(first, swap, text)[:11] == [
        "   = fix: Set them.",
        *(f"    {line}" for line in code[:8]),
        f"    # and {len(code) - 8} more lines",
        "   = 2 more fixes: see report.fixes, or the HTML report",
    ]
    assert shown(swap, text)[:4] == [
        "   = fix: Swap.",
        "    from nndiag import fixes",
        '    fixes.swap(model, "act", nn.ReLU())',
        "   = 1 more fix: see report.fixes, or the HTML report",
    ]
    assert shown(text)[:1] == ["   = fix: Clean the data."]


def test_the_worst_of_many_layers_stands_for_them_and_the_others_are_named():
    assert block(samples.sick(), "warning[ND103]") == [
        "warning[ND103] dead-relu",
        "  --> encoder.1/relu   function   models/encoder.py:41",
        "   |  156 of 256 units were zero on all 128 samples",
        "   |  share 60.9 %, threshold 40 %",
        "   = fix: Re-initialise the weights (He), biases at zero.",
        "    nn.init.kaiming_normal_(layer.weight)",
        "   = 2 more like it: encoder.5.act 54.7 % and encoder.3.act 43 %",
    ]


def test_what_a_finding_explains_is_counted_under_it_however_long_the_chain():
    lines = block(samples.sick(), "error[ND301]")

    assert lines[-1] == (
        "   = 3 more explained by this: saturation in 2 places, vanishing-gradient at encoder.0"
    )
    assert "ND201" not in text(samples.sick())


def test_a_threshold_of_the_users_own_is_said_to_be_one():
    report = samples.sick()
    moved = tuple(
        replace(f, threshold=0.3) if f.rule == "dead-relu" else f for f in report.findings
    )

    assert "threshold 30 %   (set for this run; the default is 40 %)" in text(
        replace(report, findings=moved)
    )


def test_a_rule_that_this_version_does_not_know_is_still_told():
    assert block(samples.sick(), "warning[ND999]")[1:] == [
        "  --> head   Linear   /elsewhere/site-packages/blocks.py:7",
        "   |  something this version knows nothing of",
        "   |  threshold 3.5",
    ]


def test_notes_are_one_line_and_offer_no_fix():
    [line] = [line for line in text(samples.large(4)).splitlines() if "notes:" in line]

    assert line.startswith("4 notes: dense-activation at blocks.0.mlp.act, ")
    assert "report.to_text(notes=True)" in " ".join(text(samples.large(4)).split())
    assert "fix:" not in text(replace(samples.large(4), findings=samples.large(4).findings[-1:]))


def test_notes_that_were_asked_for_take_one_line_a_rule():
    shown = samples.large().to_text(notes=True)
    notes = [line for line in shown.splitlines() if line.startswith("note")]

    assert "For details" not in shown
    assert notes == ["note[ND104] dense-activation  blocks.0.mlp.act and 199 more: 97 % not zero"]


def test_two_hundred_sick_layers_fit_one_screen():
    assert len(text(samples.large(200)).splitlines()) <= 50


def test_a_healthy_model_gets_a_clean_bill_in_a_few_lines():
    lines = text(samples.healthy()).splitlines()

    assert lines[0] == samples.healthy().verdict == "No problem found in the network (6 rules)."
    assert len(lines) <= 5


def test_where_nothing_was_judged_nothing_is_called_healthy():
    assert "Nothing was judged" in text(samples.empty())
    assert "passed" not in text(samples.empty())


def test_a_crashed_rule_takes_the_clean_bill_away():
    healthy = samples.healthy()
    crashed = replace(healthy.outcomes[0], status="crashed", reason="KeyError: 'x'")

    shown = text(replace(healthy, outcomes=(crashed, *healthy.outcomes[1:])))

    assert shown.startswith("No problem found, but 1 rule crashed, so there may be one.")
    assert "crashed: ND101 saturation (KeyError: 'x')" in shown


def test_what_was_not_looked_at_is_folded_by_its_reason():
    lines = text(samples.large()).splitlines()

    assert any(line.startswith("  not judged: dead-relu at blocks.0.mlp.act, ") for line in lines)
    assert sum("not judged" in line for line in lines) == 1
    assert any(line.startswith("  never called: aux.0, aux.1, ") for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("make", [samples.sick, samples.large, samples.healthy])
def test_every_line_fits_and_ends_without_blanks(make, width):
    for line in text(make(), width).splitlines():
        assert len(line) <= width
        assert line == line.rstrip()


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_loses_no_word(width):
    def words(shown):
        return re.sub(r"[\s|]+", "", shown)

    assert words(text(samples.sick(), width)) == words(text(samples.sick(), 200))


def test_a_layer_name_longer_than_the_line_is_whole():
    name = ".".join(f"stage{i}" for i in range(30))
    finding = Finding("dead-relu", "ND103", "warning", name, "dead")

    shown = text(replace(samples.healthy(), findings=(finding,)), 60)

    assert name in re.sub(r"\n\s*", "", shown)


def test_control_characters_of_a_name_do_not_reach_the_terminal():
    shown = text(samples.hostile("a\x1b[31mred\x07\nb\ud800"))

    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert r"a\x1b[31mred\x07\nb\ud800" in shown


def test_square_brackets_of_a_name_are_no_markup():
    assert "[bold]x[/bold]" in text(samples.hostile("[bold]x[/bold]"))


def test_colour_adds_nothing_to_the_words():
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=True, color_system="truecolor", width=100, legacy_windows=False
    )
    console.print(samples.sick())
    coloured = out.getvalue()

    assert "\x1b[1;31merror[ND301]" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).rstrip("\n") == text(samples.sick())


def test_an_excerpt_tells_an_explained_finding_whose_cause_was_left_out():
    report = samples.sick()
    faint = [f for f in report.findings if f.rule == "vanishing-gradient"]

    text = terminal.excerpt(report, faint)

    assert "warning[ND201] vanishing-gradient" in text
    assert "explained by init-scale at encoder.0.weight" in text
