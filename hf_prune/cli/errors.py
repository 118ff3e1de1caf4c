"""What goes wrong, and what is said, on the command line: one line each, in its own words."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
import typer.core

from hf_prune.shown import printable, without_tokens

NAME = "hf-prune"
# arguments of functions that a command calls, where its own option has another name
CALLED = {"filter": {"column": "--by"}, "push": {"repo_id": "REPO", "commit_message": "--message"}}
EVERYWHERE = {"splits": "--split", "output_dir": "--scores-dir"}


class Group(typer.core.TyperGroup):
    """Turns what goes wrong into one line and an exit code, and warnings into one line each."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except OSError as error:  # the help had nowhere to go
            if error.errno == errno.EPIPE:
                raise
            say(f"error: {explain(error, _flags(ctx))}")
            raise typer.Exit(1) from None
        except Exception as error:
            raise _clean(error) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            with _one_line_warnings(ctx):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted; nothing was half-written")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains
            raise typer.Exit(1) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if hasattr(error, "exit_code"):  # a usage error
                raise _clean(error) from None
            if ctx.meta.get("debug"):  # a traceback that was asked for
                raise
            say(f"error: {explain(error, _flags(ctx))}")
            raise typer.Exit(1) from None


def say(text: str) -> None:
    """One line on stderr: what is written to stdout is the result."""
    typer.echo(f"{NAME}: {printable(without_tokens(text), lines=True)}", err=True)


def show(text: str) -> None:
    """The result, on stdout: nothing in it that a terminal would obey, and no token."""
    typer.echo(printable(without_tokens(text), lines=True))


def _clean(error: Exception) -> Exception:
    """An error of the command line's own parser, with what was typed shown as the rest is."""
    if isinstance(getattr(error, "message", None), str):
        error.message = printable(without_tokens(error.message))  # type: ignore[attr-defined]
    return error


def explain(error: BaseException, flags: Mapping[str, str] | None = None) -> str:
    """An exception as one line that says what to do.

    Args:
        error: what was raised.
        flags: options of the command by the names of the arguments they become, for `in_flags`.

    >>> explain(KeyError("no column 'x'; there are 'a', 'b'"))
    "no column 'x'; there are 'a', 'b'"
    >>> explain(ModuleNotFoundError("No module named 'sklearn'", name="sklearn"))
    "sklearn is not installed; pip install 'hf_prune[demo]'"
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = {"sklearn": "demo", "sentence_transformers": "st", "faiss": "cpu"}.get(error.name.split(".")[0])
        command = f"'hf_prune[{extra}]'" if extra else error.name.split(".")[0]
        return str(error) if "pip install" in str(error) else f"{error.name} is not installed; pip install {command}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        text = f"{error.strerror}{where}"
    line = " ".join(text.split()) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory ({line}); use fewer rows at a time with --batch-size, or a smaller model"
    expected = (OSError, ValueError, LookupError, TypeError, ImportError, RuntimeError)
    if not isinstance(error, expected):
        return f"{type(error).__name__}: {line} (--debug shows where)"
    return in_flags(line, flags or {})


@contextmanager
def _one_line_warnings(ctx: Any) -> Iterator[None]:
    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        say(f"warning: {in_flags(' '.join(str(message).split()), _flags(ctx))}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of libraries to programmers
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield


_VALUE = r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\.\.\.|[^\s,;:()]*[^\s,;:().]"
_ARGUMENT = re.compile(rf"(?<![\w.=-])(?P<name>[a-z]\w*)=(?P<value>{_VALUE})?")


def in_flags(text: str, flags: Mapping[str, str]) -> str:
    """A message of the library in the words of the command line.

    >>> in_flags("keep=1.5 is no fraction; or pass nulls='drop'", {"keep": "--keep", "nulls": "--nulls"})
    '--keep 1.5 is no fraction; or pass --nulls drop'
    >>> in_flags("pass trust_code=True (--trust-code)", {"trust_code": "--trust-code"})
    'pass --trust-code'
    """

    def said(match: re.Match[str]) -> str:
        flag, value = flags.get(match["name"]), (match["value"] or "").strip("'\"[]")
        if flag is None:
            return match[0]
        return flag if value == "True" else f"{flag} {value}".rstrip()

    text = _ARGUMENT.sub(said, text)
    return re.sub(r"(--[\w-]+) \(\1\)", r"\1", text)


def _flags(ctx: Any) -> dict[str, str]:
    """Options of the command that runs, by the names of the arguments they become."""
    command = getattr(ctx.command, "commands", {}).get(ctx.invoked_subcommand)
    if command is None:
        return {}
    own = {p.name: max(p.opts, key=len) for p in command.params if p.opts and p.opts[0].startswith("-")}
    extra = {name: flag for name, flag in EVERYWHERE.items() if flag in own.values()}
    return {**extra, **own, **CALLED.get(str(ctx.invoked_subcommand), {})}
