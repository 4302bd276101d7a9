import asyncio

from ramet.host.bell import Bell


async def test_a_ring_wakes_everyone_who_waits() -> None:
    bell = Bell()
    waiters = [asyncio.ensure_future(bell.wait(5)) for _ in range(3)]
    await asyncio.sleep(0)
    bell.ring()
    assert await asyncio.gather(*waiters) == [True] * 3


async def test_a_ring_before_the_wait_does_not_count() -> None:
    bell = Bell()
    bell.ring()
    assert await bell.wait(0.001) is False
