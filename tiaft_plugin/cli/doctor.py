"""``tiaft doctor``: is everything here that tiaft needs, and what helps where not."""

import json
from dataclasses import asdict

import click

COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}


@click.command(short_help="Say what this computer lacks, with remedies.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check this computer: PASS, WARN (works with limits) or FAIL, each with the remedy.

    Nothing is changed, and nothing is asked of the internet. The exit code is 1 if anything fails.
    """
    from tiaft_plugin.doctor import examine

    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            status = click.style(check.status, fg=COLOURS[check.status], bold=True)
            click.echo(f"{status}  {check.name}: {check.text}")
            if check.remedy:
                click.echo(f"      → {check.remedy}")
    if as_json:
        listed = [asdict(check) for check in checks]
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
    ctx.exit(1 if any(check.status == "FAIL" for check in checks) else 0)
