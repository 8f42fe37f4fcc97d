import sys

import pytest

from modalloy.progress import progress_bar, track, waiting


def test_yields_everything_in_order_and_shows_it_on_stderr(capsys):
    assert list(track(iter("abc"), "reading", total=3)) == ["a", "b", "c"]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "reading" in shown.err and "3/3" in shown.err and "ETA" in shown.err


def test_starts_where_an_earlier_run_stopped(capsys):
    list(track("ab", "reading", total=5, done=3))
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(("total", "shown"), [(2, False), (3, True)])
def test_short_work_shows_no_bar(capsys, total, shown):
    assert len(list(track(range(total), "reading", total=total, shown_from=3))) == total
    assert ("reading" in capsys.readouterr().err) == shown


def test_is_lazy_and_closes_when_left_early(capsys):
    taken = []
    for item in track(map(lambda item: taken.append(item) or item, range(100)), "reading", total=100):
        if item == 2:
            break
    assert taken == [0, 1, 2]
    assert "2/100" in capsys.readouterr().err
    list(track([1], "again", total=1))


def test_errors_pass_through():
    def failing():
        yield 1
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        list(track(failing(), "reading", total=2))


def test_what_is_waited_for_is_shown_on_a_terminal_alone(capsys, monkeypatch):
    with waiting("loading [this]"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with waiting("loading [this]"):
        pass
    shown = capsys.readouterr()
    assert shown.out == "" and "loading [this]" in shown.err


def test_progress_bar(capsys):
    with progress_bar() as progress:
        task = progress.add_task("fitting", total=4)
        progress.update(task, completed=2)
    assert "fitting" in (shown := capsys.readouterr().err) and "2/4" in shown
