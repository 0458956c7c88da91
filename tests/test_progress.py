from __future__ import annotations

import io
import os
import sys
import threading

import pytest
from rich.console import Console
from rich.errors import LiveError
from rich.live import Live
from rich.progress import Progress as Display

from nndiag.progress import Progress, silenced


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def screen():
    return io.StringIO()


def terminal(screen, **more):
    return Console(file=screen, force_terminal=True, force_jupyter=False, width=80, **more)


@pytest.fixture(autouse=True)
def _a_capable_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_quick_run_shows_nothing(screen, clock):
    with Progress("checking", terminal(screen), clock) as progress:
        for i in range(10):
            clock.now += 0.09
            progress.update(i, 10, "layer")

    assert screen.getvalue() == ""


def test_it_starts_no_thread(screen, clock):
    threads = threading.active_count()
    with Progress("checking", terminal(screen), clock) as progress:
        for i in range(30):
            clock.now += 0.1
            progress.update(i, 30, "layer")
            assert threading.active_count() == threads

    assert screen.getvalue() != ""


def test_it_draws_at_its_own_pace_however_many_layers_there_are(screen, clock):
    with Progress("checking", terminal(screen), clock) as progress:
        clock.now = 1.5
        for i in range(1000):
            progress.update(i, 1000, "layer")

    assert screen.getvalue().count("layer") <= 2


def test_a_long_run_says_how_far_it_is(screen, clock):
    with Progress("checking", terminal(screen), clock) as progress:
        clock.now = 1.5
        progress.update(3, 10, "encoder.3")

        assert "checking encoder.3" in screen.getvalue()
        assert "30%" in screen.getvalue()


def test_nothing_of_it_stays_on_the_screen(screen, clock):
    console = terminal(screen)
    with Progress("checking", console, clock) as progress:
        clock.now = 1.5
        progress.update(3, 10)

    # The line is erased, the cursor is back at its beginning, and it is shown again.
    assert screen.getvalue().endswith("\x1b[1A\x1b[2K")
    assert screen.getvalue().rindex("\x1b[?25h") > screen.getvalue().rindex("\x1b[?25l")


def test_the_end_need_not_be_known(screen, clock):
    with Progress("checking", terminal(screen), clock) as progress:
        clock.now = 1.5
        progress.update(text="encoder.3")

    assert "checking encoder.3" in screen.getvalue()


def test_square_brackets_of_a_layer_name_are_no_markup(screen, clock):
    with Progress("checking", terminal(screen), clock) as progress:
        clock.now = 1.5
        progress.update(text="[/nonsense]")

    assert "checking [/nonsense]" in screen.getvalue()


def test_a_pipe_gets_nothing(screen, clock):
    with Progress("checking", Console(file=screen, force_terminal=False), clock) as progress:
        clock.now = 5.0
        progress.update(1, 2)

    assert screen.getvalue() == ""


def test_the_default_is_stderr_and_stdout_is_left_alone(capsys, clock, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress("checking", clock=clock) as progress:
        clock.now = 1.5
        progress.update(1, 2)
        print("data")

    captured = capsys.readouterr()
    assert captured.out == "data\n"
    assert "checking" in captured.err


def test_inside_silenced_there_is_none(screen, clock):
    with silenced(), Progress("checking", terminal(screen), clock) as progress:
        clock.now = 5.0
        progress.update(1, 2)

    assert screen.getvalue() == ""


def test_a_display_that_cannot_start_is_done_without(screen, clock, monkeypatch):
    def refuse(self):
        raise LiveError("Only one live display may be active at once")

    monkeypatch.setattr(Display, "start", refuse)

    with Progress("checking", terminal(screen), clock) as progress:
        clock.now = 5.0
        progress.update(1, 2)
        progress.update(2, 2)


def test_a_live_display_of_the_users_is_not_disturbed(screen, clock, monkeypatch):
    theirs = terminal(io.StringIO())
    monkeypatch.setattr("rich._console", theirs)
    with Live("theirs", console=theirs), Progress("x", terminal(screen), clock) as progress:
        clock.now = 5.0
        progress.update(1, 2)

    assert screen.getvalue() == ""


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError()])
def test_a_terminal_that_goes_away_does_not_end_the_run(clock, monkeypatch, error):
    class Gone(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            raise error

    stdout = os.fstat(1)
    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress("checking", clock=clock) as progress:
        for moment in (5.0, 6.0):
            clock.now = moment
            progress.update(1, 2)

    assert os.fstat(1) == stdout


def test_an_error_inside_passes_and_the_screen_is_cleared(screen, clock):
    def fails():
        with Progress("checking", terminal(screen), clock) as progress:
            clock.now = 5.0
            progress.update(1, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert screen.getvalue().endswith("\x1b[1A\x1b[2K")
