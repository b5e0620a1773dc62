"""LLM engines in Ray actors: the client that sends calls to them, the pool of a stage, the keeper that lends them.

An engine that dies is started again by its actor, an actor that dies by Ray; whoever was in it is told and asks again
among ever fewer others (asking.py). Whoever waited for a turn only waits longer where the engine died; where its
actor's process went only a lone call knows that it had waited, and the others count as having been inside. Calls that
show the same passage go to the same engine, so its prefix is there already.

The keeper is a detached actor, found by what its engines are: checkpoint, settings and code. Engines and their places
are its own and end with it. It ends once no stage holds them: at once, or after the time that the recipe's next stage
may take to ask for them. A stage whose driver is killed holds nothing any more. Leaves out: the engine itself
(engine.py), what is asked (generate.py, judge.py), the store (store.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import xxhash
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from chuxin.artifacts import room
from chuxin.errors import InputError, find_input_error
from chuxin.models.location import local_directory
from chuxin.synthesis.asking import Client
from chuxin.synthesis.calls import PROBE, Answer, Call, CallFailed, CallRaised, EngineDied, EngineLeft, Unanswered
from chuxin.synthesis.config import LLMConfig, LLMExecution
from chuxin.synthesis.endpoint import EndpointClient
from chuxin.synthesis.engine import Engine
from chuxin.synthesis.ledger import Ledger

NAMESPACE = "chuxin"
"""Ray's namespace of keepers: by default every job has one of its own and sees no other's actors."""
KEPT_SECONDS = 300.0
"""How long engines wait for the recipe's next stage, which may be a job of its own."""
_ORPHANED_SECONDS = 30.0
"""How long engines wait once a driver that held them has died: whoever runs it again finds them."""
_WATCH_SECONDS = 2.0
_ANSWER_SECONDS = 30.0
_TOLD_SECONDS = 60.0
_PREFIX_CHARS = 200
_START_TRIES = 3
"""Times that starting again may take an actor's process down too."""
_TRIES = 5
"""Keepers that may die before they lend."""
_lingering: dict[tuple[str, str], tuple[Any, str]] = {}
"""Keepers whose engines wait for this driver's next stage, and for which recipe, by cluster and name."""


class PoolClient:
    """Sends calls to the pool's engines; travels to workers.

    Args:
        engines: Actor handles.
        timeout: Seconds that an engine may take to come back.
    """

    def __init__(self, engines: list[Any], timeout: float = LLMExecution.start_timeout) -> None:
        self._engines, self._timeout = engines, timeout
        self._returning: dict[int, asyncio.Future[None]] = {}

    async def ask(self, call: Call, share: int | None = None, place: int | None = None) -> Answer:
        """Sends one call to the engine that its first 200 characters choose, or to that of number `place`.

        `share` is as for `Turns.turn`.
        """
        return await self._send(self.place(call) if place is None else place, call, share)

    async def probe(self, call: Call) -> None:
        """Sends a short call to the engine that a call goes to, alone."""
        await self._send(self.place(call), PROBE, 1)

    def place(self, call: Call) -> int:
        """Returns the number of the engine that a call goes to: that of its prefix."""
        prefix = call.messages[0]["content"][:_PREFIX_CHARS]
        return xxhash.xxh3_64_intdigest(prefix.encode()) % len(self._engines)

    async def _send(self, place: int, call: Call, share: int | None) -> Answer:
        kind, value = "", None
        try:
            if place in self._returning:  # sent now it would fail, and count against the call
                await self._back(place)
            engine = self._engines[place]
            if share == 1:
                async for told in engine.generate_alone.options(num_returns="streaming").remote(call):
                    kind, value = await told
            else:
                kind, value = await engine.generate.remote(call, share)
        except RayActorError as error:
            if kind == "answer":  # it came before the process went
                return Answer(*value)
            await self._back(place)
            raise (EngineLeft if share == 1 and not kind else EngineDied)(str(error).splitlines()[0]) from error
        except RayError as error:
            raise find_input_error(error) or getattr(error, "cause", None) or error from error
        if kind == "died":
            raise EngineDied(value)
        if kind == "answer":
            return Answer(*value)
        raise {"refused": CallFailed, "raised": CallRaised, "unanswered": Unanswered}[kind](value)

    async def _back(self, place: int) -> None:
        """Waits until Ray has started an actor again, and the actor its engine: once for all calls that wait for it."""
        if place not in self._returning:
            start = self._engines[place].start.options(max_task_retries=_START_TRIES)
            self._returning[place] = asyncio.ensure_future(_ready(start.remote(), self._timeout))
            self._returning[place].add_done_callback(lambda _: self._returning.pop(place))
        await asyncio.shield(self._returning[place])


async def _ready(started: Any, timeout: float) -> None:
    try:
        await asyncio.wait_for(started, timeout)
    except TimeoutError as error:
        raise InputError("the LLM's engine", f"its process ended and did not come back within {timeout:g} s",
                         "See on the dashboard what its node does, and run again: stored answers stay") from error
    except RayError as error:
        raise find_input_error(error) or InputError(
            "the LLM's engine", f"its process ended and did not come back ({str(error).splitlines()[0][:200]})",
            "See the Ray logs for why, and run again: stored answers stay"
        ) from error  # fmt: skip


class Keeper:
    """Holds engines of one kind for whoever asks. A threaded actor.

    Args:
        path: The checkpoint: a directory or hub name.
        config: The LLM.
        execution: How many engines, and what each takes.
    """

    def __init__(self, path: str, config: LLMConfig, execution: LLMExecution) -> None:
        self._kind = path, config, execution
        self._engines: list[Any] = []
        self._place: PlacementGroup | None = None
        self._holders: dict[str, tuple[Any, str, float]] = {}
        self._waits = {"": time.monotonic() + _ORPHANED_SECONDS}
        self._ended = False
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, args=(ray.get_runtime_context().current_actor,), daemon=True).start()

    def hold(self, holder: str, recipe: str, ledger: Any, patience: float) -> tuple[list[Any], bool] | None:
        """Lends the engines to a stage, until `release` or the end of its ledger.

        Args:
            holder: The stage's pool.
            recipe: For whom they may have waited.
            ledger: The stage's, an actor that dies with its driver.
            patience: Seconds that they stay for the stage when its ledger has died.

        Returns:
            Their actors, and whether they were placed for this stage; None if this keeper is about to end.
        """
        with self._lock:
            if self._ended:
                return None
            self._holders[holder] = ledger, recipe, patience
            for waited in ("", recipe):
                self._waits.pop(waited, None)
            fresh = not self._engines
            try:
                if fresh:
                    self._start()
            except ValueError:  # a number that Ray does not take
                self._end()
                raise
            return self._engines, fresh

    def release(self, holder: str, recipe: str, seconds: float) -> None:
        """Takes the engines back from a stage; they wait so many seconds for the recipe's next one.

        0 ends a wait for this recipe that another of its stages may have asked for.
        """
        with self._lock:
            self._holders.pop(holder, None)
            self._waits[recipe] = time.monotonic() + seconds
            self._end_unless_wanted()

    def leave(self) -> None:
        """Ends this actor."""
        ray.actor.exit_actor()

    def _start(self) -> None:
        """Starts the engines' actors, each in a place of its own; they get theirs together.

        A place is held while its engine's process is started again: a task that waited for a CPU took that of a dead
        engine at once, and then waited for the engine, which waited for a CPU.
        """
        execution = self._kind[2]
        self._place = placement_group([execution.reserves()] * execution.engines)
        self._engines += (ray.remote(Engine).options(
            num_cpus=execution.cpus_per_engine, num_gpus=execution.gpus_per_engine, max_restarts=-1, max_task_retries=0,
            max_concurrency=10_000, scheduling_strategy=PlacementGroupSchedulingStrategy(self._place, bundle),
        ).remote(*self._kind) for bundle in range(execution.engines))  # fmt: skip

    def _end_unless_wanted(self) -> None:
        now = time.monotonic()
        self._waits = {recipe: until for recipe, until in self._waits.items() if until > now}
        if not self._holders and not self._waits:
            self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        for engine in self._engines:
            ray.kill(engine)
        if self._place is not None:
            remove_placement_group(self._place)

    def _watch(self, own: Any) -> None:
        try:
            while not self._ended:
                time.sleep(_WATCH_SECONDS)
                with self._lock:
                    holders = list(self._holders.items())
                for holder, (ledger, recipe, patience) in holders:
                    try:
                        ray.get(ledger.busy.remote(), timeout=_ANSWER_SECONDS)
                    except (ActorUnavailableError, GetTimeoutError):
                        continue  # its node is slow, or it is started again
                    except RayError:  # dead, and Ray has many words for of what
                        with self._lock:
                            if self._holders.pop(holder, None) is not None:
                                until = time.monotonic() + patience
                                self._waits[recipe] = max(self._waits.get(recipe, 0.0), until)
                with self._lock:
                    self._end_unless_wanted()
        finally:  # engines that nobody watches would stand for ever; they end with this actor in any case
            try:
                with self._lock:
                    self._end()
            finally:
                own.leave.remote()


class LLMPool:
    """The engines, or the endpoint, and the ledger of one stage. A context manager: its end gives the engines back.

    Args:
        path: The checkpoint's directory or hub name.
        config: The LLM.
        execution: What it may take.
        keep: The next stage, of this driver or another, asks for the same engines: they wait for it, unless this
            stage fails.
        content: A digest of the checkpoint: another one at the same path is another LLM.
        recipe: Whose stages follow one another: its workspace.

    Raises:
        InputError: vLLM is not installed, the checkpoint is missing or cannot be served, or the endpoint does not
            answer.
    """

    def __init__(
        self, path: str, config: LLMConfig, execution: LLMExecution, keep: bool = False, content: str = "",
        recipe: str = "",
    ) -> None:  # fmt: skip
        self._engines: list[Any] = []
        self._keep, self._recipe, self._holder, self._keeper = keep, recipe, uuid.uuid4().hex, None
        self.client: Client
        gpus = execution.gpus_per_engine or 1
        # One that counts is not started again: what it counted is gone with it.
        again = {} if execution.limited else {"max_restarts": -1, "max_task_retries": -1}
        self.ledger = ray.remote(Ledger).options(num_cpus=0, **again).remote(
            execution.budget_tokens, execution.budget_gpu_hours, gpus * execution.engines
        )
        try:
            if config.endpoint is not None and config.served_name is not None:
                client = EndpointClient(config.endpoint, config.served_name, execution.timeout)
                asyncio.run(client.check())
                self.client = client
            else:
                placed = self._hire(path, config, execution, content)
                self.client = PoolClient(self._engines, execution.start_timeout)
                used = gpus * sum(time.time() - since for since in placed)
                ray.get(self.ledger.begin.remote(used))
        except BaseException as error:
            self._leave(0.0)
            release_engines()
            raise find_input_error(error) or error from error

    def reset_prefix_cache(self) -> None:
        """Makes the engines forget the prefixes they have computed."""
        ray.get([engine.forget.remote() for engine in self._engines])

    def __enter__(self) -> LLMPool:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        keep = self._keep and not failure
        self._leave(KEPT_SECONDS if keep else 0.0)
        if keep and self._keeper is not None:
            _lingering[self._name] = self._keeper, self._recipe

    def _leave(self, seconds: float) -> None:
        try:
            if self._keeper is not None:
                _release(self._keeper, self._holder, self._recipe, seconds)
        finally:
            ray.kill(self.ledger)

    def _hire(self, path: str, config: LLMConfig, execution: LLMExecution, content: str) -> list[float]:
        """Gets the engines, once all run; returns when those started for this pool had their place."""
        _require(path, execution)
        self._name = _cluster(), _name(path, config, execution, content)
        release_engines(self._name)
        # Where only the ledger dies, which with a budget is not started again, requests in work still get an answer.
        patience = max(execution.timeout, _ORPHANED_SECONDS) if execution.limited else _ORPHANED_SECONDS
        replaced, died, begun = False, 0, time.monotonic()
        while True:
            self._keeper = ray.remote(Keeper).options(
                name=self._name[1], namespace=NAMESPACE, get_if_exists=True, lifetime="detached", num_cpus=0,
                max_concurrency=16,
            ).remote(path, config, execution)  # fmt: skip
            try:
                lent = ray.get(self._keeper.hold.remote(self._holder, self._recipe, self.ledger, patience))
            except ActorUnavailableError:
                lent = None
            except RayActorError as error:
                died += 1
                if died == _TRIES or getattr(error, "actor_init_failed", False):
                    raise
                lent = None
            if lent is None:  # it was just ending: its name is free when it has; or its node is slow
                if time.monotonic() - begun > execution.start_timeout:
                    raise InputError("the LLM's keeper", f"no other takes its place within {execution.start_timeout:g} "
                                     "s", "Look for the actor on the dashboard, and run again")  # fmt: skip
                time.sleep(0.1)
                continue
            self._engines, fresh = lent
            _lingering.pop(self._name, None)
            try:
                placed = _wait(self._engines, execution.start_timeout)
                return placed if fresh else []
            except (RayError, InputError):
                if fresh or replaced:
                    raise
                # Engines that waited and cannot any more: new ones start, or say why they do not either.
                _release(self._keeper, self._holder, self._recipe, 0.0)
                replaced, begun = True, time.monotonic()


def release_engines(but: tuple[str, str] = ("", "")) -> None:
    """Lets the engines go that wait for a next stage of this driver, but for those of one name."""
    for name in [*_lingering.keys() - {but}]:
        keeper, recipe = _lingering.pop(name)
        if name[0] == _cluster():
            _release(keeper, "", recipe, 0.0)


def _release(keeper: Any, holder: str, recipe: str, seconds: float) -> None:
    with contextlib.suppress(RayError):  # gone, and its engines with it
        ray.get(keeper.release.remote(holder, recipe, seconds))


def _cluster() -> str:
    return str(ray.get_runtime_context().gcs_address)


def _name(path: str, config: LLMConfig, execution: LLMExecution, content: str) -> str:
    """A keeper's name: jobs whose code, environment, checkpoint and settings are the same share it."""
    code = [file.read_bytes() for file in sorted(Path(__file__).parents[1].rglob("*.py"))]
    environment = sorted(ray.get_runtime_context().runtime_env.items(), key=str)
    kind = repr((path, content, config, execution.engine_options(), code, environment))
    return f"llm-{xxhash.xxh3_64_hexdigest(kind.encode())}"


def _require(path: str, execution: LLMExecution) -> None:
    directory = local_directory(path)
    if not os.path.isfile(os.path.join(directory, "config.json")):
        raise InputError(directory, "the LLM's directory has no config.json", "Give a checkpoint's directory")
    if importlib.util.find_spec("vllm") is None:
        raise InputError("llm", "vLLM is not installed here", "Run cluster/setup.sh, or name an llm.endpoint")
    require_room([node["Resources"] for node in ray.nodes() if node["Alive"]], execution)


def require_room(nodes: Sequence[Mapping[str, float]], execution: LLMExecution) -> None:
    """Refuses engines that no cluster of these nodes could hold: Ray itself would wait for ever.

    Args:
        nodes: CPUs and GPUs of each node, by name.
        execution: What the engines shall take; each stands on one node.

    Raises:
        InputError: They do not fit.
    """
    each = execution.reserves()
    if not each:
        raise InputError("llm.execution", "an engine must reserve a CPU or a GPU", "Set cpus_per_engine")
    places = room(nodes, each)
    if places < execution.engines:
        takes = " and ".join(f"{number:g} {name}s" for name, number in each.items())
        raise InputError("llm.execution", f"{execution.engines} engines of {takes} each, and the cluster has room for "
                         f"{places}", "Lower engines, cpus_per_engine or gpus_per_engine, or raise execution.num_cpus "
                         "(logical CPUs of a local run)")  # fmt: skip


def _wait(engines: Sequence[Any], timeout: float) -> list[float]:
    """Waits until all engines run, and says every minute that it does; returns when they had their place."""
    # One that others use may just be started again: its actor is waited for.
    started = [engine.start.options(max_task_retries=_START_TRIES).remote() for engine in engines]
    waiting, begun = started, time.monotonic()
    while waiting:
        left = timeout - (time.monotonic() - begun)
        ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=max(0.0, min(_TOLD_SECONDS, left)))
        ray.get(ready)
        if waiting and left <= 0:
            raise InputError("llm.execution", f"{len(waiting)} of {len(engines)} engines did not start within "
                             f"{timeout:g} s", "See on the dashboard whether other jobs hold the CPUs or GPUs, or "
                             "raise start_timeout")  # fmt: skip
        if waiting:
            print(f"{len(waiting)} of {len(engines)} engines wait for their place or load their model", flush=True)
    return [placed for _, placed in ray.get(started)]
