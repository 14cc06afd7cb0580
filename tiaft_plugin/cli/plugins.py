"""``tiaft plugins``: which plug-ins there are, their hooks, and what they register."""

import json
from dataclasses import asdict

import click


@click.command(short_help="List plug-ins and what they register.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def plugins(as_json: bool) -> None:
    """List plug-ins with their hooks and what they register.

    TIAFT_DISABLE_PLUGINS=a,b leaves plug-ins out; TIAFT_TRACE_PLUGINS=1 prints each call of a
    hook. How to write a plug-in stands in docs/plugins.md.
    """
    from tiaft_plugin.plugins import describe

    infos = describe()
    if as_json:
        listed = [asdict(info) for info in infos]
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    for info in infos:
        click.echo(f"{info.name} ({info.source})")
        for hook in info.hooks:
            names = ", ".join(info.registers.get(hook, []))
            click.echo(f"  {hook}" + (f": {names}" if names else ""))
        if info.error:
            click.echo(f"  ! {info.error}")
