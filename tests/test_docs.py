"""The reference of the command line is generated from `--help`: `python -m tests.test_docs` writes it anew."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from geoseg.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
BEGIN, END = "<!-- command line: begin -->\n", "<!-- command line: end -->"
COMMANDS = [
    *("predict", "vectorize", "batch", "info", "plan", "train", "evaluate", "compare"),
    *("models list", "models show", "models export", "networks list", "networks show"),
]


def reference() -> str:
    """Help of every command, as Markdown."""
    runner, parts = CliRunner(), []
    for command in COMMANDS:
        result = runner.invoke(app, [*command.split(), "--help"], prog_name="geoseg", terminal_width=100)
        assert result.exit_code == 0, result.output
        parts.append(f"<details><summary><code>geoseg {command}</code></summary>\n\n```\n{result.output.strip()}\n```\n\n</details>\n")
    return "\n".join(parts)


def test_the_reference_is_in_step_with_the_commands() -> None:
    text = PAGE.read_text(encoding="utf-8")
    written = text.partition(BEGIN)[2].partition(END)[0]
    assert written == reference(), "docs/commands.md is stale: python -m tests.test_docs"


def test_every_command_is_in_the_reference_and_every_option_has_help() -> None:
    found = []
    for info, prefix in [(app, ""), *((group.typer_instance, f"{group.name} ") for group in app.registered_groups)]:
        command = typer.main.get_command(info)
        for name, sub in command.commands.items():
            if not hasattr(sub, "commands"):
                found.append(prefix + name)
                assert sub.help, name
                assert all(getattr(p, "help", None) for p in sub.params if p.name != "help"), f"{name}: an option without help"
    assert sorted(found) == sorted(COMMANDS)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + reference() + END + rest.partition(END)[2], encoding="utf-8")
