"""Every command that a page shows is run, page by page and in order, as a reader would type it; and what a page shows
is what the command prints, but for numbers.

The pages share one daemon. So that the whole takes a minute or two, some commands are put in others' place:
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.docs.conftest import Shell
from tests.docs.pages import ROOT, all_pages, blocks, commands, find_missing

SUBSTITUTIONS = (
    (r"^git clone .*|^cd ramet$|^\. \.venv/bin/activate$", "true", "the checkout is there"),
    (r"^make demo$", "ramet demo --micro", "the Debian guest takes minutes"),
    (r"^export RAMET_STATE=.*", "true", "all pages share one daemon"),
    (
        r"^ramet image build (micro|debian)$",
        "ramet image ls -q | grep -qx micro || ramet image build micro",
        "once for all",
    ),
    (r"--image debian\b", "--image micro", "the Debian guest takes a minute to build and half a minute to boot"),
)
"""(Pattern, what is run instead, why)."""

COMMAND_S = 120.0

PAGES = [page for page in all_pages() if any(block.is_run for block in blocks(page))]

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]


def put_in_place(command: str) -> str:
    for pattern, instead, _ in SUBSTITUTIONS:
        command = re.sub(pattern, instead, command)
    return command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_work(page: Path, shell: Shell) -> None:
    if os.geteuid() != 0 and "as root" in page.read_text(encoding="utf-8").lower():
        pytest.skip("the page is for root")
    if page.stem == "vsphere-ansible" and shutil.which("ansible-playbook", path=shell.path) is None:
        pytest.skip("there is no Ansible: tools/clients.sh")
    for block in blocks(page):
        if block.file_name is not None:
            shell.write(block.file_name, block.text)
        elif block.is_run:
            for command in commands(block):
                status, printed = shell.run(put_in_place(command.text), COMMAND_S)
                assert (status != 0) == command.fails, f"$ {command.text}\nended with {status}:\n{printed[-3000:]}"
                if command.varies or put_in_place(command.text) != command.text:
                    continue
                missing = find_missing(command.shown, printed)
                assert missing is None, f"$ {command.text}\ndoes not print {missing!r}, but:\n{printed[-3000:]}"
