"""What threads and processes may share: forks, closing, and answers asked for at the same time."""

import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio

from geomag_edge import Pipeline
from geomag_edge.errors import EngineError
from geomag_edge.runtime.engines.sharing import Door
from geomag_edge.runtime.images.raster import Raster

PROMPTS = ("segment the ships near the pier", "how many planes are there?", "where is [SEG]?")
ENGINES = ("ort-cpu", "openvino", "torch")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module", params=ENGINES)
def pipe(request, bundle):
    """Two threads a graph, so that there are some to be lost."""
    if request.param != "ort-cpu":
        pytest.importorskip(request.param)
    with Pipeline.load(bundle, request.param, threads=2) as pipe:
        yield pipe


def answer(pipe, picture, prompt=PROMPTS[0]):
    found = pipe(picture, prompt, "2", 4, "[SEG]")
    return found.text, found.token_ids, np.asarray(found.masks[0]).sum()


def in_fork(work, seconds=60):
    """The exit status of a child that does some work and then ends as any program does."""
    child = os.fork()
    if not child:
        signal.alarm(seconds)  # ends it, and fails the test, where it hangs
        try:
            work()
        except EngineError as e:
            good = "fork" in str(e) and "load the bundle in this process" in str(e)
            os._exit(33 if good else 34)
        except BaseException:
            os._exit(35)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_is_told_to_load_its_own(pipe, picture):
    answer(pipe, picture)
    session = pipe.open(picture)
    for ask in (
        lambda: answer(pipe, picture),
        lambda: pipe.open(picture),
        lambda: pipe.planner(),
        lambda: session.ask(PROMPTS[0]),
    ):
        assert in_fork(ask) == 33


def test_a_fork_closes_and_forgets_without_harm(pipe, picture):
    def forget():
        pipe.close()
        pipe.chain.sessions.clear()
        pipe.chain.engine = None
        gc.collect()

    assert in_fork(forget) == 0
    assert answer(pipe, picture)


def test_a_fork_loads_its_own(pipe, bundle, picture):
    expected = answer(pipe, picture)

    def load():
        with Pipeline.load(bundle, pipe.chain.engine.name, threads=2) as own:
            assert answer(own, picture) == expected

    def load_with_one_thread():
        with Pipeline.load(bundle, pipe.chain.engine.name, threads=1) as own:
            assert own(picture, PROMPTS[0], "2", 4, "[SEG]").token_ids == expected[1]

    assert in_fork(load_with_one_thread) == 0
    if pipe.chain.engine.name != "torch":
        assert in_fork(load) == 0
    else:  # its OpenMP's threads do not come through a fork
        assert in_fork(load) == 34


def test_a_fork_in_the_middle_of_a_query_loads_its_own(bundle, picture):
    """Whatever locks other threads hold in that moment."""
    with Pipeline.load(bundle, threads=2) as pipe:
        stop = threading.Event()

        def keep_asking():
            while not stop.is_set():
                answer(pipe, picture)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            for _ in range(3):
                assert in_fork(lambda: answer(pipe, picture)) == 33
                assert in_fork(lambda: answer(Pipeline.load(bundle, threads=2), picture)) == 0
        finally:
            stop.set()
            asking.join()


PROGRAM = """
    import os, sys, threading, multiprocessing, numpy as np
    from geomag_edge import Pipeline
    image = np.zeros((64, 64, 3), np.uint8)
    pipe = Pipeline.load(sys.argv[1], sys.argv[2], threads=2)
    pipe(image, "a ship", "1", 1)
"""


def program(bundle, engine, text, seconds=120):
    """Runs a program that has loaded a pipeline; what it printed."""
    code = textwrap.dedent(PROGRAM) + textwrap.dedent(text)
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle), engine],
        capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stderr, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_a_fork_ends_when_it_is_done(bundle, engine):
    """At its exit the interpreter frees all there is, its parent's threads' owners too."""
    if engine != "ort-cpu":
        pytest.importorskip(engine)
    out = program(bundle, engine, """
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            pipe.close()
    """)  # fmt: skip
    assert out == "0\n"


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_an_interpreter_ends_with_a_pipeline_open_or_in_use(bundle, engine):
    if engine != "ort-cpu":
        pytest.importorskip(engine)
    assert program(bundle, engine, "session = pipe.open(image); print('open')") == "open\n"
    out = program(bundle, engine, """
        def forever():
            while True:
                pipe(image, "a ship", "1", 1)
        for _ in range(2):
            threading.Thread(target=forever, daemon=True).start()
        threading.Event().wait(0.3)
        print("in use")
    """)  # fmt: skip
    assert out == "in use\n"


def test_workers_of_a_pool(bundle):
    out = program(bundle, "ort-cpu", """
        from concurrent.futures import ProcessPoolExecutor

        def parents(i):
            return pipe(image, "a ship", "1", 1).text

        def own(path):
            with Pipeline.load(path, threads=2) as mine:
                return mine(image, "a ship", "1", 1).text

        with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
            try:
                list(pool.map(parents, range(2)))
            except Exception as e:
                print(type(e).__name__)
            print(list(pool.map(own, [sys.argv[1]] * 2)) == [own(sys.argv[1])] * 2)
    """)  # fmt: skip
    assert out == "EngineError\nTrue\n"


def test_workers_of_a_data_loader(bundle):
    pytest.importorskip("torch")
    out = program(bundle, "ort-cpu", """
        from torch.utils.data import DataLoader

        class Answers:
            def __init__(self, path):
                self.path, self.pipe = path, None
            def __len__(self):
                return 4
            def __getitem__(self, i):
                if self.path and self.pipe is None:
                    self.pipe = Pipeline.load(self.path, threads=2)
                return (self.pipe or pipe)(image, "a ship", "1", 1).text

        print(sum(len(b) for b in DataLoader(Answers(sys.argv[1]), num_workers=2)))
        try:
            list(DataLoader(Answers(None), num_workers=1))
        except Exception as e:
            print("EngineError" in str(e) and "load the bundle in this process" in str(e))
    """)  # fmt: skip
    assert out == "4\nTrue\n"


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_pipeline_is_not_sent_but_says_what_to_send(bundle, send):
    with Pipeline.load(bundle, threads=1) as pipe:
        for thing in (pipe, pipe.open(np.zeros((9, 9, 3), np.uint8))):
            with pytest.raises(TypeError, match="send the bundle's path"):
                send(thing)


def test_threads_get_the_answers_that_one_gets(pipe, picture):
    """On one pipeline, and on one session, words with marks in them included."""
    expected = [answer(pipe, picture, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: answer(pipe, picture, PROMPTS[i % 3]), range(12)))
    assert found == [expected[i % 3] for i in range(12)]
    with pipe.open(picture) as session, ThreadPoolExecutor(4) as pool:
        ask = lambda i: session.ask(PROMPTS[i % 3], "2", 4, "[SEG]").token_ids  # noqa: E731
        assert list(pool.map(ask, range(6))) == [expected[i % 3][1] for i in range(6)]


def test_closing_while_others_ask(bundle, picture):
    """Each of them is answered or told, and the pipeline is freed by the last."""
    for engine in ("ort-cpu", "openvino"):
        if engine == "openvino":
            pytest.importorskip(engine)
        pipe = Pipeline.load(bundle, engine, threads=2)
        expected, told, asked = answer(pipe, picture), [], threading.Semaphore(0)

        def keep_asking(pipe=pipe, expected=expected, told=told, asked=asked):
            while True:
                try:
                    assert answer(pipe, picture) == expected
                    asked.release()
                except EngineError as e:
                    told.append(str(e))
                    return

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        asked.acquire()
        pipe.close()
        pipe.close()
        for thread in threads:
            thread.join(60)
        assert told == ["this pipeline is closed: load the bundle again"] * 4
        assert not pipe.chain.sessions


def test_after_closing_every_door_says_so(bundle, picture):
    pipe = Pipeline.load(bundle, threads=1)
    session = pipe.open(picture)
    session.close()
    session.close()
    with pytest.raises(EngineError, match="session is closed: open the image again"):
        session.ask(PROMPTS[0])
    session = pipe.open(picture)
    pipe.close()
    pipe.close()
    for use in (
        lambda: pipe(picture, PROMPTS[0]), lambda: pipe.open(picture), lambda: pipe.planner(),
        lambda: session.ask(PROMPTS[0]), lambda: pipe(picture, PROMPTS[0], latency_ms=100),
    ):  # fmt: skip
        with pytest.raises(EngineError, match="pipeline is closed: load the bundle again"):
            use()
    session.close()


def test_a_query_closed_by_its_own_reader_still_ends(bundle, picture):
    pipe = Pipeline.load(bundle, threads=1)
    session = pipe.open(picture)

    def close(text):
        session.close()
        pipe.close()

    assert len(session.ask(PROMPTS[0], "2", 4, "[SEG]", on_text=close).masks) >= 1
    assert not pipe.chain.sessions


def test_a_door_lets_one_in_at_a_time_if_it_must():
    class Room:
        inside, most, freed = 0, 0, 0

        def __init__(self):
            self.door = Door(("this", "open it"), self.free, one_at_a_time=True)

        def free(self):
            self.freed += 1

        def enter(self, _):
            with self.door.inside(), self.door.inside():
                self.inside += 1
                self.most = max(self.most, self.inside)
                threading.Event().wait(0.001)
                self.inside -= 1

    room = Room()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(room.enter, range(50)))
    room.door.close()
    assert (room.most, room.inside, room.freed) == (1, 0, 1)
    gone = weakref.ref(room)
    del room
    assert gone() is None  # at once, without the garbage collector


def test_a_fork_reads_a_file_through_handles_of_its_own(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (3, 600, 600), np.uint8)
    name = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "count": 3, "height": 600, "width": 600, "dtype": "uint8"}
    with rasterio.open(name, "w", **profile) as file:
        file.write(values)
    raster = Raster(str(name))
    before, rows = raster._dataset, (100, 0, 200, 600)

    def read():
        rgb, _ = raster.read(raster.levels[0], rows)
        assert (rgb == np.moveaxis(values[:, 100:200], 0, -1)).all()
        assert raster._dataset is not before

    assert in_fork(read) == 0
    assert raster.read(raster.levels[0], rows)[0].shape == (100, 600, 3)
    assert raster._dataset is before
    raster.close()


SPAWNS = """
import multiprocessing, sys
import numpy as np
from geomag_edge import Pipeline

def text_of(bundle):
    with Pipeline.load(bundle, threads=1) as pipe:
        return pipe(np.zeros((64, 64, 3), np.uint8), "a ship", "1", 1).text

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(text_of, sys.argv[1:]) == text_of(sys.argv[1])
        print("the same")
"""


def test_spawned_processes_start_with_nothing(bundle, tmp_path):
    # A script of its own: what a worker cannot import makes a pool wait for ever.
    (tmp_path / "spawns.py").write_text(SPAWNS)
    command = [sys.executable, str(tmp_path / "spawns.py"), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == "the same\n", done.stderr
