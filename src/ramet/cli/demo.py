"""``ramet demo``: a guest booted once, cloned while it runs and from a freeze, deleted, and its clones alive.

Every scene shows the command that a user would type for it. The guest's own words are checked, not only printed: a
token it wrote to its RAM before it was cloned, the key that only this clone was given, and, in the frozen workflow,
that the script which asked for the freeze went on in each clone. Anything that does not hold ends the show with
exit code 1. The stage is cleared at the end, whatever happened.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ramet.cli import demo_vsphere, render
from ramet.cli.agent import PAUSE_S, wait_for_agent
from ramet.cli.demo_guest import (
    FREEZE_COMMAND,
    FREEZE_FILE,
    FREEZE_LOG,
    FREEZE_SCRIPT,
    NAME_KEY,
    PROVE,
    SCRIPT_FILE,
    SETTLE,
    TOKEN_FILE,
    Proof,
    read_proof,
)
from ramet.cli.demo_identity import COLUMNS, DRAW, Face, alike, face, unacknowledged
from ramet.cli.demo_stage import own_stage, to_its_answer
from ramet.cli.output import Cell, Column, Output, millis, size
from ramet.cli.progress import follow, succeed
from ramet.cli.session import Session
from ramet.errors import ConflictError, DeadlineError, GuestError, RametError
from ramet.model.host import Task
from ramet.model.machine import VmState
from ramet.model.memory import MemoryCounters
from ramet.model.requests import BuildImage, CloneVm, CreateVm, Exec, NicRequest
from ramet.model.views import CloneResult, MemoryView

if TYPE_CHECKING:
    from ramet.api.client import Client

SOURCE = "origin"
VSPHERE_NAMES = ("by-script", "by-form")
SHOWN_CHECKS = ("QEMU", "accelerator", "kernel", "memory")
BOOT_S = 240.0
ANSWER_S = 60.0
SETTLE_S = 75.0
FREEZE_S = 60.0
CANCEL_S = 30.0


@dataclass(frozen=True)
class Plan:
    micro: bool = False
    keep: bool = False
    live: int = 3
    frozen: int = 5
    many: int = 12

    @property
    def image(self) -> str:
        return "micro" if self.micro else "debian"

    @property
    def memory_mib(self) -> int:
        return 128 if self.micro else 512

    @property
    def live_names(self) -> list[str]:
        return [f"live-{number}" for number in range(1, self.live + 1)]

    @property
    def frozen_names(self) -> list[str]:
        return [f"frozen-{number}" for number in range(1, self.frozen + 1)]

    @property
    def many_names(self) -> list[str]:
        return [f"pod-{number}" for number in range(1, self.many + 1)]


@dataclass
class Birth:
    """How one machine came to life, milliseconds from the request."""

    name: str
    workflow: str
    stun_ms: float | None
    running_ms: float | None
    answered_ms: float
    proof: Proof | None = None
    identity_ms: float | None = None
    network_ms: float | None = None


@dataclass
class Show:
    """The scenes, in order. Collects what it sees; raises nothing that the guests got wrong, but notes it."""

    client: Client
    out: Output
    plan: Plan
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    births: list[Birth] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    """Names of VMs that exist because of us, for whoever clears the stage."""
    memory: dict[str, MemoryView] = field(default_factory=dict)
    spent: MemoryCounters = field(default_factory=MemoryCounters)
    """By all of them, and by those that hold memory for clones to come."""
    clones: list[CloneResult] = field(default_factory=list)
    faces: list[Face] = field(default_factory=list)
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def perform(self) -> None:
        self._check_names()
        self._host()
        self._image()
        self._boot()
        self._live_clones()
        self._freeze()
        self._frozen_clones()
        self._many_clones()
        self._ask_all("Each clone answers: its own name, and the token from the RAM it shares")
        self._identities()
        self._vsphere_clones()
        self._measure()
        self._delete_source()
        self._times()
        self._memory()

    def _check_names(self) -> None:
        """On a state folder of the user's: nothing there is touched, so nothing there may have the show's names."""
        wanted = {SOURCE, *self.plan.live_names, *self.plan.frozen_names, *self.plan.many_names, *VSPHERE_NAMES}
        taken = sorted(wanted & {vm.name for vm in self.client.list_vms()})
        if taken:
            raise ConflictError(
                f"There is a VM named {taken[0]!r} already.", hint="Give the demo a folder of its own: --state DIR."
            )

    # -- scenes ------------------------------------------------------------------------------------------------------

    def _host(self) -> None:
        """Also so that looking for a working accelerator, which is done once, is not counted as the guest's boot."""
        self._scene("This host", "ramet doctor")
        checks = [check for check in self.client.doctor() if check.status != "ok" or check.name in SHOWN_CHECKS]
        if not self.out.as_json and not self.out.quiet:
            render.checks(self.out, checks, indent=2)

    def _image(self) -> None:
        self._scene("An image", f"ramet image build {self.plan.image}")
        if any(image.name == self.plan.image for image in self.client.list_images()):
            self._tell("It is there already.")
            return
        started = self.clock()
        request = BuildImage.model_validate({"recipe": self.plan.image})
        self._settle(lambda: self.client.build_image(request))
        self._tell(f"Built in {self._since(started)}.")

    def _boot(self) -> None:
        memory = f"--memory {self.plan.memory_mib}M"
        self._scene("Boot it, once", f"ramet vm create {SOURCE} --image {self.plan.image} {memory} --start")
        request = CreateVm(name=SOURCE, image=self.plan.image, memory_mib=self.plan.memory_mib, start=True)
        if not self._has_default_network():
            request = request.changed(nics=(NicRequest(network="user").model_dump(),))
        started = self.clock()
        self.made.append(SOURCE)
        self._settle(lambda: self.client.create_vm(request))
        self._wait_for_answer(SOURCE, BOOT_S)
        self.births.append(Birth(SOURCE, "boot", None, None, self._ms(started)))
        self._tell(f"It booted and answers after {self._since(started)}.")
        self._settle_down()
        self._typed(f"ramet vm exec {SOURCE} -- sh -c 'echo {self.token} > {TOKEN_FILE}'")
        self._shell(SOURCE, f"echo {self.token} > {TOKEN_FILE}")

    def _settle_down(self) -> None:
        """A guest whose services are still starting would start them in every clone at the same time."""
        if self.plan.micro:
            return
        started = self.clock()
        self._typed(f"ramet vm exec {SOURCE} -- {SETTLE}")
        self._shell(SOURCE, f"timeout {ANSWER_S:.0f} {SETTLE} || :", SETTLE_S)
        self._tell(f"Its last service has started {self._since(started)} later.")

    def _live_clones(self) -> None:
        self._scene("Clone it while it runs")
        for name in self.plan.live_names:
            self._clone(name, "live")

    def _freeze(self) -> None:
        self._scene("A script inside the guest freezes it", f"ramet vm cp freeze.sh {SOURCE}:{FREEZE_FILE}")
        for line in FREEZE_SCRIPT.strip().splitlines()[1:]:
            self.out.say("    ", Cell(line, "dim"))
        self.client.write_file(SOURCE, FREEZE_FILE, FREEZE_SCRIPT.encode(), 0o755)
        self._typed(f"ramet vm exec {SOURCE} -- sh -c {shlex.quote(FREEZE_COMMAND)}")
        self._shell(SOURCE, FREEZE_COMMAND)
        deadline = self.clock() + FREEZE_S
        while self.client.show_vm(SOURCE).state is not VmState.FROZEN:
            if self.clock() > deadline:
                log = self._shell(SOURCE, f"cat {FREEZE_LOG}").strip()
                raise DeadlineError(f"{SOURCE} did not freeze within {FREEZE_S:.0f} s.", hint=f"Its script said: {log}")
            self.pause(PAUSE_S)
        self._tell(f"{SOURCE} is frozen in the middle of its script.")

    def _frozen_clones(self) -> None:
        self._scene("Clone the frozen one: every clone goes on with the script's next line")
        for name in self.plan.frozen_names:
            self._clone(name, "frozen")

    def _many_clones(self) -> None:
        if not self.plan.many:
            return
        self._scene(
            f"{self.plan.many} more at once", f"ramet clone {SOURCE} --count {self.plan.many} --name 'pod-{{n}}'"
        )
        self.made += self.plan.many_names
        started = self.clock()
        request = CloneVm(name="pod-{n}", count=self.plan.many)
        task = self._settle(lambda: self.client.clone_vm(SOURCE, request), quietly=True)
        for result in self._noted(task):
            self._wait_for_answer(result.name, ANSWER_S)
            t = result.timings_ms
            birth = Birth(result.name, "frozen, at once", None, t.total, t.identity or t.total)
            birth.identity_ms, birth.network_ms = t.identity or None, t.network or None
            self.births.append(birth)
        self._tell(f"All {self.plan.many} run as machines of their own after {self._since(started)}.")

    def _noted(self, task: Task) -> list[CloneResult]:
        """A finished clone task's results; what is wrong with them is noted."""
        results = [CloneResult.model_validate(item) for item in task.result or []]
        self.clones += results
        self.wrong += unacknowledged(results)
        self.wrong += [f"{result.name} was not made: {result.error}" for result in results if not result.ok]
        return [result for result in results if result.ok]

    def _identities(self) -> None:
        self._scene(
            f"{len(self.clones)} clones, {len(self.clones)} identities", f"ramet vm exec pod-1 -- {DRAW.split(';')[0]}"
        )
        for clone in self.clones:
            view, drawn = self.client.show_vm(clone.name), self._shell(clone.name, DRAW)
            self.faces.append(face(view, clone.addresses.values(), drawn))
        self._table(COLUMNS, [one.row for one in self.faces])
        self.wrong += alike(self.faces)

    def _ask_all(self, title: str) -> None:
        self._scene(title, f"ramet vm exec {self.plan.live_names[0]} -- cat {TOKEN_FILE}")
        self._typed(f"ramet vm exec {self.plan.live_names[0]} -- vmware-rpctool 'info-get {NAME_KEY}'")
        self._typed(f"ramet vm exec {self.plan.frozen_names[0]} -- cat {SCRIPT_FILE}")
        rows = []
        for birth in self.births[1:]:
            proof = birth.proof = self._prove(birth)
            good = Cell("yes", "green") if proof.token == self.token else Cell("NO", "bold red")
            script = Cell(proof.script or "") if birth.workflow == "frozen" else Cell("")
            rows.append((birth.name, f"{proof.uptime_s:.1f} s", proof.name or "", good, script))
        columns = ("clone", "uptime", "guestinfo", "token", "the script saw")
        self._table([Column(title) for title in columns], rows)

    def _measure(self) -> None:
        for birth in self.births:
            memory = self.client.show_vm(birth.name).memory
            if memory is not None:
                self.memory[birth.name] = memory
        self.spent = self.client.memory(now=True).totals

    def _vsphere_clones(self) -> None:
        """Bare, as clients of that API expect: they are told apart by the key that each was given."""
        if not demo_vsphere.is_possible():
            return
        self._scene(
            "The same clone once more, by tools for vSphere", f"ramet vsphere on --listen {demo_vsphere.LISTEN}"
        )
        script, form = VSPHERE_NAMES
        self.made += VSPHERE_NAMES
        with demo_vsphere.opened(self.client) as door:
            self._typed(f"python -c '… {demo_vsphere.SHOWN}name={script!r}, …)))'    # pyVmomi, unmodified")
            self._born_by("pyVmomi", script, demo_vsphere.run_script(door, SOURCE, script))
            self._typed(f"POST https://{door.host}:{door.port}/mob/?method=instantClone  <spec><name>{form}</name>…")
            self._born_by("browser form", form, demo_vsphere.fill_in_form(door, SOURCE, form))

    def _born_by(self, workflow: str, name: str, running_ms: float) -> None:
        started = self.clock()
        self._wait_for_answer(name, ANSWER_S)
        birth = Birth(name, workflow, None, running_ms, running_ms + self._ms(started))
        self.births.append(birth)
        proof = birth.proof = self._prove(birth)
        holds = (proof.token, proof.name) == (self.token, name)
        what = f"has the token and its own {NAME_KEY}" if holds else "is NOT what it must be"
        self._tell(f"{name} runs after {millis(running_ms)}, and {what}.")

    def _delete_source(self) -> None:
        self._scene("Delete the source: nobody depends on it", f"ramet vm rm --force {SOURCE}")
        self._settle(lambda: self.client.remove_vm(SOURCE, True))
        self.made.remove(SOURCE)
        for birth in self.births[1:]:
            self._prove(birth)
        alive = sum(self.client.show_vm(b.name).state is VmState.RUNNING for b in self.births[1:])
        if alive != len(self.births) - 1:
            self.wrong.append(f"Only {alive} of {len(self.births) - 1} clones run after their source was deleted.")
        self._tell(f"{alive} clones run and answer.")

    # -- tables ------------------------------------------------------------------------------------------------------

    def _times(self) -> None:
        self._scene("Times")
        boot = self.births[0].answered_ms
        columns = [
            Column("machine", style="bold"),
            Column("how"),
            Column("source stood still", right=True),
            Column("running after", right=True),
            Column("itself after", right=True),
            Column("on the network", right=True),
            Column("than the boot", right=True),
        ]
        rows = []
        for birth in self.births:
            running = birth.running_ms or birth.answered_ms
            faster = "" if birth.workflow == "boot" else f"{boot / running:.0f} times faster"
            itself = birth.answered_ms if birth.workflow == "boot" else birth.identity_ms
            times = (millis(birth.stun_ms), millis(birth.running_ms), millis(itself), millis(birth.network_ms))
            rows.append((birth.name, birth.workflow, *times, Cell(faster, "green")))
        self._table(columns, rows)

    def _memory(self) -> None:
        self._scene("Memory, while all of them ran", "ramet vm ls")
        names = ("machine", "resident", "unique", "shared")
        columns = [Column(name, right=name != "machine") for name in names]
        rows = [
            (name, size(m.resident_bytes), size(m.unique_bytes), size(m.shared_bytes))
            for name, m in self.memory.items()
        ]
        self._table(columns, rows)
        real = self.spent.unique_bytes + self.spent.common_bytes
        configured = sum(m.configured_bytes for m in self.memory.values())
        resident = sum(m.resident_bytes for m in self.memory.values())
        overhead = self.spent.overhead_bytes + self.spent.page_tables_bytes
        self._tell(f"{len(self.memory)} machines with {size(configured)} of memory see {size(resident)} of it in use.")
        self._tell(f"The host gave {size(real)} for that, and {size(overhead)} for the QEMU processes themselves.")

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _clone(self, name: str, workflow: str) -> None:
        self._typed(f"ramet clone {SOURCE} {name} --set {NAME_KEY}={name}")
        started = self.clock()
        self.made.append(name)
        request = CloneVm(names=(name,), extra_config={NAME_KEY: name})
        task = self._settle(lambda: self.client.clone_vm(SOURCE, request), quietly=True)
        (result,) = self._noted(task)
        self._wait_for_answer(name, ANSWER_S)
        stun = result.timings_ms.stun if workflow == "live" else None
        birth = Birth(name, workflow, stun, result.timings_ms.total, self._ms(started))
        birth.identity_ms, birth.network_ms = result.timings_ms.identity or None, result.timings_ms.network or None
        self.births.append(birth)
        stood = f"{SOURCE} stood still for {millis(stun)}; " if stun is not None else ""
        itself = f", is itself after {millis(birth.identity_ms)}" if birth.identity_ms else ""
        network = f", on the network after {millis(birth.network_ms)}" if birth.network_ms else ""
        self._tell(f"{stood}runs after {millis(birth.running_ms)}{itself}{network}.")

    def _prove(self, birth: Birth) -> Proof:
        """What the clone says about itself; what is not as it must be is noted."""
        deadline = self.clock() + ANSWER_S
        while True:
            proof = read_proof(self._shell(birth.name, PROVE))
            if birth.name in self.plan.many_names:
                break
            if birth.workflow != "frozen" or proof.script is not None or self.clock() > deadline:
                break
            self.pause(PAUSE_S)  # its script is still on its way to the next line
        if proof.token != self.token:
            self.wrong.append(f"{birth.name} lost the token: it has {proof.token!r}.")
        if proof.name != birth.name and birth.name not in self.plan.many_names:
            self.wrong.append(f"{birth.name} reads {proof.name!r} as its {NAME_KEY}.")
        if birth.workflow == "frozen" and proof.script != birth.name:
            self.wrong.append(f"The script in {birth.name} did not go on, or saw {proof.script!r}.")
        return proof

    def _shell(self, name: str, command: str, timeout_s: float = ANSWER_S) -> str:
        """Standard output of a shell command in the guest; raises GuestError when it fails."""
        result = self.client.exec_in_vm(name, Exec(argv=("/bin/sh", "-c", command), timeout_s=timeout_s))
        if result.exit_code != 0:
            said = b64decode(result.stderr_base64).decode(errors="replace").strip()
            raise GuestError(f"A command in {name} failed with {result.exit_code}: {said or command}.")
        return b64decode(result.stdout_base64).decode(errors="replace")

    def _wait_for_answer(self, name: str, timeout_s: float) -> None:
        wait_for_agent(self.client, name, timeout_s, clock=self.clock, pause=self.pause)

    def _has_default_network(self) -> bool:
        return any(network.name == "default" for network in self.client.list_networks())

    def _settle(self, ask: Callable[[], Task], *, quietly: bool = False) -> Task:
        """Begin a task and wait for it. Interrupted, it is cancelled and has ended: the stage can be cleared."""
        task = to_its_answer(ask)
        try:
            return succeed(self.client.wait_task(task) if quietly else follow(self.client, task, self.out))
        except KeyboardInterrupt:
            with contextlib.suppress(RametError, OSError):
                self.client.cancel_task(task.id)
            with contextlib.suppress(RametError, OSError):
                self.client.get_task(task.id, wait_s=CANCEL_S)
            raise

    def _ms(self, started: float) -> float:
        return (self.clock() - started) * 1000

    def _since(self, started: float) -> str:
        return millis(self._ms(started))

    # -- telling -----------------------------------------------------------------------------------------------------

    def _scene(self, title: str, command: str | None = None) -> None:
        self.out.say("")
        self.out.say(Cell(title, "bold cyan"))
        if command:
            self._typed(command)

    def _typed(self, command: str) -> None:
        self.out.say("  ", Cell("$ ", "dim"), Cell(command, "bold"))

    def _tell(self, text: str) -> None:
        self.out.say("  ", text)

    def _table(self, columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]]) -> None:
        if not self.out.as_json and not self.out.quiet:
            self.out.table(columns, rows)


def perform(session: Session, plan: Plan) -> None:
    """The whole show on a stage of its own, or on the state the user named. Exits 1 when something did not hold."""
    import typer

    with own_stage(session, keep=plan.keep) as stage:
        show = Show(stage.client, session.out, plan, made=stage.made)
        try:
            show.perform()
        finally:
            stage.told(session.out)
    if session.out.as_json:
        session.out.json(as_data(show))
    for complaint in dict.fromkeys(show.wrong):
        session.out.error(complaint)
    if show.wrong:
        raise typer.Exit(1)


def as_data(show: Show) -> dict[str, object]:
    """The show's numbers, for --json."""
    machines = [
        {
            "name": birth.name,
            "workflow": birth.workflow,
            "stun_ms": birth.stun_ms,
            "running_ms": birth.running_ms,
            "answered_ms": birth.answered_ms,
            "identity_ms": birth.identity_ms,
            "network_ms": birth.network_ms,
            "memory": show.memory.get(birth.name),
        }
        for birth in show.births
    ]
    return {
        "ok": not show.wrong,
        "wrong": show.wrong,
        "machines": machines,
        "identities": [vars(one) for one in show.faces],
    }
