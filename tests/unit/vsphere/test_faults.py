"""What an error says to those who speak the API: its sentence and its hint, and no command line of ours."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

import ramet
from ramet import errors
from ramet.errors import CapacityError, RametError, StateError, UsageError
from ramet.machine.lifecycle import Happening, Operation, next_state
from ramet.model.machine import VmState
from ramet.vsphere.core.faults import fault_of, words_of

OPTION = re.compile(r"(?<![\w-])--[a-z]")
COMMAND = re.compile(r"\bramet [a-z]+")
NOT_BEHIND_IT = {"cli", "api", "bench", "soak", "testing"}
NOT_FOR_CLIENTS = {"faults.py", "switch.py", "style.py", "scripts.py"}
"""What it is about; what speaks to the host's own command; a style sheet; scripts for guests."""


def texts(of: ast.AST) -> str:
    """A string of the source, with `x` for each value that is put into it."""
    match of:
        case ast.Constant(value=str()):
            return str(of.value)
        case ast.JoinedStr():
            return "".join(texts(part) for part in of.values)
        case ast.FormattedValue():
            return "x"
    return " ".join(filter(None, map(texts, ast.iter_child_nodes(of))))


def sources() -> Iterator[tuple[Path, ast.Module]]:
    root = Path(ramet.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in NOT_BEHIND_IT:
            yield path, ast.parse(path.read_text())


def hints() -> list[str]:
    """Of all errors that may reach a client, as they are written."""
    found = {
        texts(keyword.value)
        for _, tree in sources()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "hint"
    }
    return sorted(hint for hint in found if hint)


def test_no_hint_names_a_command_to_a_client() -> None:
    all_hints = hints()
    assert sum(bool(OPTION.search(hint)) for hint in all_hints) > 10  # it looks at something
    for hint in all_hints:
        said = words_of(StateError("It is so.", hint=hint))
        assert said.startswith("It is so.")
        assert not OPTION.search(said), hint
        assert not COMMAND.search(said), hint
        assert said[-1] in ".?" or said.endswith(hint), hint


def test_no_state_of_a_machine_does() -> None:
    for state, operation in product(VmState, Operation):
        try:
            next_state(state, operation, name="web")
        except StateError as exc:
            said = fault_of(exc).msg
            assert not OPTION.search(said), said
            assert not COMMAND.search(said), said
            assert "'web'" in said
    with pytest.raises(StateError, match="loaded"):
        next_state(VmState.OFF, Happening.LOADED)


def test_no_refusal_of_the_surface_names_an_option() -> None:
    told = [
        (path.name, text)
        for path, tree in sources()
        if "vsphere" in path.parts and path.name not in NOT_FOR_CLIENTS
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr) and OPTION.search(text := texts(node))
    ]
    assert told == []


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (None, ""),
        ("Start it first.", " Start it first."),
        ("Stop it first, or remove it with --force.", " Stop it first."),
        ("See 'ramet network ls'.", ""),
        ("Try again when it is done; `ramet task ls` shows it.", " Try again when it is done."),
        ("Make another one first: ramet user add NAME --role administrator", " Make another one first."),
        ("Thaw it. Or use --hard. Or wait.", " Thaw it. Or wait."),
        ("Did you mean 'web--x'?", " Did you mean 'web--x'?"),
        ("Ramet needs KVM -- or patience.", " Ramet needs KVM -- or patience."),
    ],
)
def test_what_stands_before_a_command_is_kept(hint: str | None, said: str) -> None:
    assert words_of(UsageError("No.", hint=hint)) == "No." + said


@pytest.mark.parametrize(
    ("error", "msg"),
    [
        (CapacityError("Full.", hint="Give it less: --memory SIZE."), "Full. Give it less."),
        (OSError(24, "Too many open files"), "Too many open files."),
        (StateError("Cannot stop --hard 'web': it is off.", hint="See --x."), "Cannot power off 'web': it is off."),
    ],
)
def test_faults_say_so(error: Exception, msg: str) -> None:
    assert fault_of(error).msg == msg


def test_every_class_of_errors_does() -> None:
    for kind in errors._subclasses(RametError):
        fault = fault_of(kind("No.", hint="Use --force."))
        assert (fault is None) is issubclass(kind, errors.InternalError)
        assert fault is None or fault.msg == "No."
