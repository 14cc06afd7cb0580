"""Progress bars: where they show, and where they do not."""

import pytest

from tiaft_plugin.progress import progress


@pytest.mark.parametrize(("wanted", "shown"), [(True, True), (False, False), (None, False)])
def test_a_bar_shows_on_stderr_where_it_is_wanted(capsys, wanted, shown):
    with progress(4, "Reading", "slide", wanted=wanted) as bar:  # stderr is no terminal here
        bar.update(4)
    output = capsys.readouterr()
    assert output.out == ""
    assert ("Reading: 100%" in output.err and "4/4" in output.err) is shown
    assert ("slides/s" in output.err) is shown


def test_a_log_file_gets_a_bars_states_seldom(capsys):
    with progress(1000, "Reading") as bar:  # capsys' stderr is no terminal
        assert bar.mininterval == bar.maxinterval == 30
