import asyncio

import pytest

from ramet.errors import BusyError
from ramet.host.locks import VmLocks


async def test_a_second_operation_is_told_which_one_runs() -> None:
    locks = VmLocks(name_of=lambda vm_id: "web")
    async with locks.hold("v", "clone"):
        assert locks.busy_with("v") == "clone"
        with pytest.raises(BusyError, match=r"'web' is busy: clone has been running for 0 s\.") as caught:
            async with locks.hold("v", "stop"):
                pass
        assert caught.value.fields["operation"] == "clone"
        async with locks.hold("other", "stop"):
            pass
    assert locks.busy_with("v") is None


async def test_shared_holds_of_one_operation_go_together_and_keep_others_out() -> None:
    locks = VmLocks()
    async with locks.hold("v", "clone", shared=True):
        async with locks.hold("v", "clone", shared=True):
            pass
        for operation, shared in (("stop", False), ("clone", False), ("export", True)):
            with pytest.raises(BusyError):
                async with locks.hold("v", operation, shared=shared):
                    pass
    async with locks.hold("v", "stop"):
        with pytest.raises(BusyError):
            async with locks.hold("v", "stop", shared=True):
                pass


async def test_whoever_waits_gets_it_when_it_is_given_back() -> None:
    locks = VmLocks()
    order: list[str] = []

    async def wait() -> None:
        async with locks.hold("v", "second", wait_s=10):
            order.append("second")

    async with locks.hold("v", "first"):
        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        order.append("first")
    await waiting
    assert order == ["first", "second"]


async def test_waiting_is_bounded() -> None:
    locks = VmLocks()
    async with locks.hold("v", "first"):
        with pytest.raises(BusyError):
            async with locks.hold("v", "second", wait_s=0.01):
                pass


async def test_a_failure_gives_the_hold_back() -> None:
    locks = VmLocks()
    with pytest.raises(ZeroDivisionError):
        async with locks.hold("v", "first"):
            raise ZeroDivisionError
    assert locks.busy_with("v") is None
