"""The commands, each imported when it is named.

A command is started often: by people, by scripts, by the mount for its daemon. Imports are most of
what a short one takes, and `status` needs neither a store's SDK nor the engine.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperGroup

MODULE_OF: Final = {
    "mkfs": "volume",
    "check": "volume",
    "mount": "mounting",
    "umount": "running",
    "sync": "running",
    "status": "running",
    "ls": "browse",
    "cat": "browse",
    "cp": "browse",
    "tree": "browse",
    "explain": "explain",
    "volume": "encryption",
    "probe": "probing",
    "deploy": "deploying",
}
"""Command -> the module of `cli` that has it, in the order of the help."""

MARKUP: Final = "markdown"


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without collecting garbage, of which imports make none; a third of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Commands(TyperGroup):
    """A group whose commands are not there before somebody asks for them."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401  # typer hides the class
        return list(MODULE_OF)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        if cmd_name in MODULE_OF:
            self._load(MODULE_OF[cmd_name])
        else:
            for module in set(MODULE_OF.values()):  # to tell which name is like this one
                self._load(module)
        return super().get_command(ctx, cmd_name)

    def _load(self, module: str) -> None:
        app = typer.Typer(rich_markup_mode=MARKUP)
        app.callback()(_nothing)  # without one, a single command would be the group itself
        with uncollected():
            found = import_module(f"s3fs_banyan.cli.{module}")
        found.register(app)
        for name, command in typer.main.get_group(app).commands.items():
            self.commands.setdefault(name, command)


def _nothing() -> None:
    """What all commands share is set up by the group that they are found in."""
