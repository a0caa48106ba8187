"""The API pages: ``{names} potentia.layer`` lists and documents public names, ``{commands}`` the command line."""

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

_PRIVATE = re.compile(r"\._\w+")
_OPTION = re.compile(r"(?<![\w`-])(--[a-z][\w.=-]*\w)")


def documented(module: str, name: str) -> list[str]:
    """Lines that document a public name, in reStructuredText."""
    obj = getattr(importlib.import_module(module), name)
    if inspect.isclass(obj):
        kind = "exception" if issubclass(obj, BaseException) else "class"
        options = ["   :members:", *(["   :show-inheritance:"] if public_bases(obj) else [])]
    else:
        kind, options = "function", []
    return [f".. auto{kind}:: {module}.{name}", *options, ""]


class Names(SphinxDirective):
    """A table of the names in its content, and what their docstrings say; the module is the argument."""

    has_content = True
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Have autosummary and autodoc write both."""
        module = self.arguments[0]
        names = " ".join(self.content).split()
        table = [f"   ~{module}.{name}" for name in names]
        lines = [".. autosummary::", "   :nosignatures:", "", *table, ""]
        for name in names:
            lines += documented(module, name)
        return self.parse_text_to_nodes("\n".join(["````{eval-rst}", *lines, "````"]))


class Commands(SphinxDirective):
    """Every command of the command line with its arguments and options."""

    option_spec = {"level": directives.nonnegative_int}  # noqa: RUF012 - docutils's own

    def run(self) -> list[nodes.Node]:
        """Read them off the application."""
        import typer.main

        from potentia._cli._app import app

        command = typer.main.get_command(app)
        text = "\n".join(_command_lines("potentia", command))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def _command_lines(path: str, command: Any) -> Iterator[str]:
    children = getattr(command, "commands", {})
    if children:
        for name, child in children.items():
            yield from _command_lines(f"{path} {name}", child)
        return
    words = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
    yield from (
        f"## {path}",
        "",
        f"`{' '.join([path, *words, '[OPTIONS]'])}`",
        "",
        _OPTION.sub(r"`\1`", inspect.cleandoc(command.help)),
        "",
    )
    yield from ("| option | meaning | default |", "| --- | --- | --- |")
    for parameter in command.params:
        if parameter.name != "help":
            yield _row(parameter)
    yield ""


def _row(parameter: Any) -> str:
    said = " ".join((parameter.help or "").split()).replace("|", r"\|").replace("*", r"\*")
    said = _OPTION.sub(r"`\1`", said)
    is_argument = parameter.param_type_name == "argument"
    label = parameter.name.upper() if is_argument else ", ".join(parameter.opts)
    return f"| `{label}` | {said} | {_default(parameter)} |"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value is None or value is False or callable(value) or str(value) in ("", ".") else f"`{value}`"


def public(target: str) -> str:
    """The public path of what a private module defines: potentia.energies._field.X is potentia.energies.X."""
    return _PRIVATE.sub("", target)


def _missing(app: Sphinx, env: BuildEnvironment, node: pending_xref, words: nodes.Node) -> nodes.Node | None:
    """Resolve a name in a signature that stands in a private module."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or public(target) == target:
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public(target), node, words)


def public_bases(cls: type) -> list[type]:
    """The public classes that a class stands on, those between them and it left out."""
    shown = [base for base in cls.__mro__[1:] if _is_public(base)]
    return [base for base in shown if not any(base in other.__mro__[1:] for other in shown)]


def _process_bases(app: Sphinx, name: str, obj: type, options: object, bases: list[type]) -> None:
    bases[:] = public_bases(obj)


def _process_signature(app: Sphinx, what: str, name: str, obj: object, options: object, given: str, gives: str) -> Any:
    """Write the default that a dataclass makes afresh as an ellipsis, which Sphinx can parse."""
    return given and given.replace("<factory>", "..."), gives


def _is_public(cls: type) -> bool:
    if not cls.__module__.startswith("potentia"):
        return issubclass(cls, BaseException | Sequence) and cls not in (BaseException,)
    module = importlib.import_module(public(cls.__module__))
    return cls.__name__ in getattr(module, "__all__", ())


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("names", Names)
    app.add_directive("commands", Commands)
    app.connect("missing-reference", _missing)
    app.connect("autodoc-process-bases", _process_bases)
    app.connect("autodoc-process-signature", _process_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
