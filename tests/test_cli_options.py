"""What options take, and that commands which share an option say the same of it."""

import click
import pytest

from tiaft_plugin.cli.finetune import finetune
from tiaft_plugin.cli.models import models
from tiaft_plugin.cli.options import KEY_VALUE, CommaList

SHARED = ("backbone_args", "init", "mean", "std", "seed", "truncate")


@pytest.mark.parametrize("name", SHARED)
def test_finetune_and_create_share_the_options_of_networks(name):
    one, other = (
        next(option for option in command.params if option.name == name).to_info_dict()
        for command in (finetune, models.commands["create"])
    )
    assert one == other


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1),
        ("a=1.5", 1.5),
        ("a=True", True),
        ("a=same", "same"),
        ("a=b=c", "b=c"),
        ("a=", ""),
    ],
)
def test_settings_become_what_they_read_as(text, value):
    found = KEY_VALUE.convert(text, None, None)
    assert found == ("a", value)
    assert type(found[1]) is type(value)


@pytest.mark.parametrize("text", ["1,,2", "1,2,", "a", "1;2"])
def test_lists_with_gaps_are_refused(text):
    with pytest.raises(click.BadParameter, match="is not widths"):
        CommaList("widths", int).convert(text, None, None)
