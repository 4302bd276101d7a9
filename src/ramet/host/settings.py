"""The daemon's settings: one table, from which the file's keys, the variables, the flags and the reference are made.

    settings = load(flags={"state_dir": Path("/srv/ramet")}, env=os.environ) -> Settings       # UsageError
    reference() -> str                                # a Markdown table for the docs
    unknown_variables(env) -> list[str]               # RAMET_* that nobody reads, each with what may be meant

What wins: flag, then variable, then S/settings.toml, then the default. Key `chain_bound` is the variable
RAMET_CHAIN_BOUND and the flag --chain-bound; only the state directory is shorter: RAMET_STATE and --state.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from ramet.errors import UsageError
from ramet.model.access import listen_text, parse_listen
from ramet.model.base import Model, explain
from ramet.model.units import MIB

FILE_NAME = "settings.toml"


def default_state_dir() -> Path:
    """/var/lib/ramet for root, the user's data folder otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/ramet")
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "ramet"


class Settings(Model):
    """Parsed once, passed down. To add one is to add a field here: file, variable, flag and reference follow."""

    state_dir: Path = Field(
        default_factory=default_state_dir,
        description="Folder of all state, the sockets included.",
        json_schema_extra={"shown_default": "/var/lib/ramet; for users ~/.local/share/ramet"},
    )
    socket_path: Path | None = Field(
        default=None,
        description="Socket of the API.",
        json_schema_extra={"shown_default": "run/api.sock in the state folder"},
    )
    group: str = Field(
        default="ramet", description="Members of this group may use the socket, where it exists and the daemon may."
    )
    qemu_binary: str = Field(default="qemu-system-x86_64", description="QEMU to run: a name in PATH, or a path.")
    qemu_user: str = Field(
        default="ramet-qemu", description="User that QEMU runs as when the daemon is root and the user exists."
    )
    chain_bound: int = Field(
        default=8, ge=2, le=64, description="Layers a disk may be deep before it is flattened in the background."
    )
    stun_bound_ms: float = Field(
        default=10_000.0, gt=0, description="A stun that lasts longer is given up: the source runs again, ms."
    )
    start_timeout_s: float = Field(default=60.0, gt=0, description="For a QEMU to come up, seconds.")
    qmp_timeout_s: float = Field(default=30.0, gt=0, description="For one command to QEMU, seconds.")
    autostart_delay_s: float = Field(
        default=1.0, ge=0, description="Between two VMs that start by themselves, seconds."
    )
    parallel_forks: int = Field(default=4, ge=1, le=64, description="Clones brought up at the same time.")
    clone_buffer_mib: int = Field(
        default=32,
        ge=8,
        le=1024,
        description="Under emulation: room for the code that a clone's QEMU has translated, MiB. It fills up, and is "
        "memory of the clone's own; too little, and busy guests translate again and again.",
    )
    zygotes: bool = Field(
        default=True,
        description="Fork clones from a QEMU that is linked already: faster, and smaller. Off: each clone of a lineage "
        "links for itself.",
    )
    pool_parallel: int = Field(default=2, ge=1, le=64, description="Clones made ready for pools at the same time.")
    pool_delay_s: float = Field(
        default=0.2, ge=0, description="A pool is filled again when nobody took a clone for so long, seconds."
    )
    pool_reserve_mib: int = Field(
        default=512, ge=0, description="Memory of the host that pools leave free: below it they shrink, MiB."
    )
    admission: Literal["worst-case", "measured"] = Field(
        default="measured",
        description="What must fit before a VM is started or cloned: worst-case, all that guests may ever write; "
        "measured, what they are expected to write, by how they grew lately.",
    )
    memory_reserve_mib: int = Field(
        default=512,
        ge=0,
        description="Memory of the host that VMs are not given: near it the daemon warns, and takes memory back from "
        "idle guests, MiB.",
    )
    console_quota_bytes: int = Field(
        default=4 * MIB, ge=8192, description="Scrollback kept of each VM's console, bytes."
    )
    log_quota_bytes: int = Field(default=16 * MIB, ge=8192, description="Kept of each log, bytes.")
    parallel_identities: int = Field(
        default=4, ge=1, le=64, description="Clones whose guests take on their identities at the same time."
    )
    memory_every_s: float = Field(
        default=10.0, ge=1, description="No VM's memory is looked at less often than this, seconds."
    )
    memory_cpu_percent: float = Field(
        default=2.0, gt=0, le=100, description="Share of one processor that measuring memory may take, percent."
    )
    rotate_every_s: float = Field(default=10.0, gt=0, description="Between two looks at the size of logs, seconds.")
    vsphere_listen: str = Field(
        default="",
        description="ADDRESS:PORT at which vSphere clients are served, until `ramet vsphere` says otherwise; empty: no "
        "port is opened.",
    )
    tls_certificate: Path | None = Field(
        default=None,
        description="Certificate for vSphere clients, with its chain, in PEM.",
        json_schema_extra={"shown_default": "made by the daemon, in `tls` in the state folder"},
    )
    tls_key: Path | None = Field(
        default=None,
        description="Key of `tls_certificate`, in PEM, not encrypted.",
        json_schema_extra={"shown_default": "made by the daemon"},
    )
    session_idle_s: float = Field(
        default=1800.0, ge=1, description="A vSphere client's session ends when it asks nothing for so long, seconds."
    )
    sessions_max: int = Field(default=1000, ge=1, description="Sessions of vSphere clients that are open at a time.")
    sessions_per_user_max: int = Field(default=250, ge=1, description="Of these, the most that one user has.")
    connections_max: int = Field(
        default=512, ge=1, le=10_000, description="Connections of vSphere clients that are open at a time."
    )
    lockout_failures: int = Field(
        default=5, ge=1, description="Wrong passwords within ten minutes after which a user is locked."
    )
    lockout_s: float = Field(default=900.0, ge=0, description="How long a user is locked then, seconds.")
    audit_quota_bytes: int = Field(
        default=64 * MIB, ge=65536, description="Kept of the audit log, `audit.jsonl` in the state folder, bytes."
    )
    task_history: int = Field(default=1000, ge=10, description="Tasks that are remembered after their end.")
    event_history: int = Field(default=10_000, ge=100, description="Events that are remembered.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="What the daemon's log tells: debug, info, warning or error."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="console, json, or auto: console on a terminal."
    )

    @field_validator("vsphere_listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        if not value:
            return value
        try:
            return listen_text(*parse_listen(value))
        except UsageError as exc:
            raise ValueError(str(exc).rstrip(".")) from exc

    @property
    def api_socket(self) -> Path:
        return self.socket_path or self.state_dir / "run" / "api.sock"

    @property
    def streams_socket(self) -> Path:
        return self.api_socket.with_name("streams.sock")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return "RAMET_STATE" if name == "state_dir" else f"RAMET_{name.upper()}"


def flag(name: str) -> str:
    return "--state" if name == "state_dir" else f"--{name.replace('_', '-')}"


def load(flags: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None) -> Settings:
    """The settings as they hold now. `flags` by setting's name, None for those not given.

    UsageError names the first that is unknown or wrong, and where it stands.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    _refuse_unknown(given, "There is no setting {!r}.")
    variables = _from_env(os.environ if env is None else env)
    state_dir = Path(given.get("state_dir") or variables.get("state_dir") or default_state_dir())
    state_dir = state_dir.expanduser().absolute()
    values = {**_from_file(state_dir / FILE_NAME), **variables, **given, "state_dir": state_dir}
    try:
        return Settings.model_validate(values)
    except ValidationError as exc:
        name = str(exc.errors(include_url=False)[0]["loc"][0])
        raise UsageError(
            f"The setting {explain(exc)}", hint=_where(name, given, variables, state_dir), setting=name
        ) from exc


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """Sentences about variables that look like settings and are close to one: a slip that would go unseen."""
    known = {variable(name) for name in Settings.model_fields}
    strange = sorted(name for name in env if name.startswith("RAMET_") and name not in known)
    close = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.8) for name in strange}
    return [f"Nothing reads {name}; did you mean {near[0]}?" for name, near in close.items() if near]


def reference() -> str:
    """The table of all settings, in Markdown."""
    rows = ["| Setting | Variable | Flag | Default | Meaning |", "|---|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        default = extra["shown_default"] if isinstance(extra, dict) else f"`{field.default}`"
        rows.append(f"| `{name}` | `{variable(name)}` | `{flag(name)}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    return {name: env[variable(name)] for name in Settings.model_fields if env.get(variable(name))}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{path} is not valid TOML: {exc}.", hint="Write lines like chain_bound = 8.") from exc
    _refuse_unknown(values, f"{path}: there is no setting {{!r}}.")
    if "state_dir" in values:
        raise UsageError(f"{path}: state_dir cannot stand in its own folder.", hint="Use --state or RAMET_STATE.")
    return values


def _refuse_unknown(values: Mapping[str, Any], sentence: str) -> None:
    for name in values:
        if name not in Settings.model_fields:
            near = difflib.get_close_matches(name, Settings.model_fields, n=1)
            raise UsageError(sentence.format(name), hint=f"Did you mean {near[0]!r}?" if near else None, setting=name)


def _where(name: str, given: Mapping[str, Any], variables: Mapping[str, Any], state_dir: Path) -> str:
    if name in given:
        return f"It was given as {flag(name)}."
    return (
        f"It stands in the variable {variable(name)}."
        if name in variables
        else f"It stands in {state_dir / FILE_NAME}."
    )
