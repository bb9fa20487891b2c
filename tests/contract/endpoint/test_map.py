"""Many calls: order, bounds, errors and ends of `map` and `amap`."""

import asyncio
import random
import signal
import threading
import time

import numpy as np
import pytest

from polyserve.errors import InternalError, InvalidArgumentError


def rows(number):
    return np.full((1, 4), float(number))


def collect(endpoint, batches, **options):
    return [answer[0] for answer in endpoint.map(batches, progress=False, **options)]


def acollect(endpoint, batches, **options):
    async def main():
        return [answer[0] async for answer in endpoint.amap(batches, **options)]

    return asyncio.run(main())


@pytest.fixture(params=["map", "amap"])
def gather(request):
    """Yield `map` or `amap`, as a function that collects what it yields."""
    return collect if request.param == "map" else acollect


def slowly(exchange):
    """Answer after a while of its own, so that answers overtake each other."""
    time.sleep(random.Random(exchange.rows[0, 0]).random() / 50)
    exchange.predict()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "polyserve-map"]


def test_answers_come_in_order_whatever_their_latencies(bench, gather):
    server = bench.server(slowly)

    answers = gather(bench.endpoint(server), (rows(number) for number in range(100)), concurrency=8)

    assert answers == [4.0 * number for number in range(100)]
    assert server.connections <= 8


def test_no_input_gives_no_answer(bench, gather):
    server = bench.server()

    assert gather(bench.endpoint(server), []) == []
    assert server.connections == 0


def test_inputs_are_read_no_further_than_twice_the_concurrency(bench):
    read = []
    source = (read.append(number) or rows(number) for number in range(100))
    answers = bench.endpoint(bench.server()).map(source, concurrency=4, progress=False)
    ahead = []
    for position, _ in enumerate(answers):
        ahead.append(len(read) - position)

    assert max(ahead) <= 8
    assert len(read) == 100


def test_inputs_are_read_no_further_than_twice_the_concurrency_on_a_loop(bench):
    async def main():
        read = []
        source = (read.append(number) or rows(number) for number in range(100))
        position = 0
        async for _ in bench.endpoint(bench.server()).amap(source, concurrency=4):
            assert len(read) - position <= 8
            position += 1
        return read

    assert len(asyncio.run(main())) == 100


def test_no_more_calls_are_in_flight_than_asked_for(bench, gather):
    lock, now, most = threading.Lock(), 0, 0

    def count(exchange):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1
        exchange.predict()

    gather(bench.endpoint(bench.server(count)), (rows(number) for number in range(60)), concurrency=5)

    assert 2 <= most <= 5


def test_each_input_has_its_own_retries(bench, gather):
    failed = set()

    def once_each(exchange):
        key = exchange.rows[0, 0]
        if key in failed:
            exchange.predict()
        else:
            failed.add(key)
            exchange.fail(503, "UNAVAILABLE", "starting")

    answers = gather(bench.endpoint(bench.server(once_each)), [rows(number) for number in range(10)], concurrency=4)

    assert answers == [4.0 * number for number in range(10)]


def test_an_error_of_the_inputs_is_raised_after_the_answers_before_it(bench):
    def source():
        yield from (rows(number) for number in range(5))
        raise OSError("the disk is gone")

    stream = bench.endpoint(bench.server()).map(source(), concurrency=4, progress=False)
    answers = [next(stream)[0] for _ in range(5)]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)

    assert answers == [0.0, 4.0, 8.0, 12.0, 16.0]
    assert threads() == []


def test_an_error_of_asynchronous_inputs_is_raised_after_the_answers_before_it(bench):
    async def source():
        for number in range(5):
            yield rows(number)
        raise OSError("the disk is gone")

    async def main():
        stream = bench.endpoint(bench.server()).amap(source(), concurrency=4)
        answers = [(await anext(stream))[0] for _ in range(5)]
        with pytest.raises(OSError, match="the disk is gone"):
            await anext(stream)
        return answers

    assert asyncio.run(main()) == [0.0, 4.0, 8.0, 12.0, 16.0]


def test_an_input_that_fails_is_raised_in_its_place_and_ends_it(bench, gather):
    def hate_three(exchange):
        if exchange.rows[0, 0] == 3:
            exchange.fail(500, "INTERNAL", "three")
        else:
            exchange.predict()

    with pytest.raises(InternalError, match="three"):
        gather(bench.endpoint(bench.server(hate_three)), (rows(number) for number in range(1000)), concurrency=2)

    assert threads() == []


def test_closing_the_generator_cancels_what_is_in_flight_and_ends_the_thread(bench):
    over = threading.Event()
    server = bench.server(lambda exchange: exchange.predict() if exchange.rows[0, 0] == 0 else over.wait(20) and None)
    answers = bench.endpoint(server).map((rows(number) for number in range(100)), concurrency=4, progress=False)
    assert next(answers)[0] == 0.0
    assert len(threads()) == 1

    answers.close()
    over.set()

    assert threads() == []


def test_an_interrupt_cancels_what_is_in_flight_and_ends_the_thread(bench):
    over = threading.Event()

    def interrupt(exchange):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        over.wait(20)

    server = bench.server(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(bench.endpoint(server).map([rows(0)], progress=False))
    finally:
        over.set()

    assert threads() == []


def test_cancelling_the_task_of_amap_cancels_what_is_in_flight(bench):
    over, arrived = threading.Event(), threading.Event()

    def hang(exchange):
        arrived.set()
        over.wait(20)

    endpoint = bench.endpoint(bench.server(hang))

    async def consume():
        return [answer async for answer in endpoint.amap((rows(number) for number in range(100)), concurrency=4)]

    async def main():
        task = asyncio.create_task(consume())
        await asyncio.to_thread(arrived.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    try:
        asyncio.run(main())
    finally:
        over.set()


def test_map_works_where_an_event_loop_runs(bench):
    endpoint = bench.endpoint(bench.server())

    async def notebook():
        return collect(endpoint, [rows(1), rows(2)])

    assert asyncio.run(notebook()) == [4.0, 8.0]


def test_a_generator_that_is_never_started_costs_nothing(bench):
    server = bench.server()

    bench.endpoint(server).map([rows(1)])

    assert (threads(), server.connections) == ([], 0)


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_concurrency_that_is_none_is_refused_at_once(bench, concurrency):
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        bench.endpoint(bench.server()).map([], concurrency=concurrency)


def test_a_progress_bar_is_on_standard_error_only_where_it_is_asked_for(bench, capsys):
    endpoint = bench.endpoint(bench.server())

    list(endpoint.map([rows(1)]))
    silent = capsys.readouterr()
    list(endpoint.map([rows(1)], progress=True))
    shown = capsys.readouterr()

    assert (silent.out, silent.err, shown.out) == ("", "", "")
    assert "sums" in shown.err
    assert "1/1" in shown.err
