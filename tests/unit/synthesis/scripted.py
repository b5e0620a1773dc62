"""An LLM played by a function, at the rim where engines stand: what it is sent is counted."""

import asyncio
import json
import re
from collections import Counter
from types import SimpleNamespace

from chuxin.synthesis.calls import Answer, Call, EngineDied
from chuxin.synthesis.ledger import Ledger
from chuxin.synthesis.render import FENCE, NO, YES

Reply = str | Exception


class ScriptedLLM:
    """A client. `reply(call)` gives the answer's text, a verdict's probability, or an exception to raise; `dead` tells
    whether the engine dies of a probe too.
    """

    def __init__(self, reply=None) -> None:
        self.reply = reply or good
        self.sent: Counter[str] = Counter()
        self.alone = self.probes = 0
        self.dead = lambda: False
        self.engine = lambda call: 0
        self.seeds: list[int] = []
        self.shares: list[int | None] = []
        self.places: list[int] = []
        """The engine of each call sent."""

    async def ask(self, call: Call, share: int | None = None, place: int | None = None) -> Answer:
        self.sent[call.prompt] += 1
        self.places.append(self.place(call) if place is None else place)
        self.alone += share == 1
        self.shares.append(share)
        self.seeds.append(call.seed)
        said = self.reply(call)
        if isinstance(said, Exception):
            raise said
        if isinstance(said, float):
            import math

            scores = {YES: math.log(said), NO: math.log(1 - said)}
            return Answer(YES if said >= 0.5 else NO, "stop", 50, 1, 0, scores)
        return Answer(said, "stop", 100, len(said))

    async def probe(self, call: Call) -> None:
        self.probes += 1
        if self.dead():
            raise EngineDied("it is gone again")

    def place(self, call: Call) -> int:
        return self.engine(call)


class PlayedLedger:
    """A ledger in this process, with an actor's handles: `.METHOD.remote` returns what can be awaited."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> SimpleNamespace:
        async def remote(*given: object) -> object:
            await asyncio.sleep(0)
            return getattr(self._ledger, name)(*given)

        return SimpleNamespace(remote=remote)


def played() -> PlayedLedger:
    """A ledger without a budget."""
    return PlayedLedger(Ledger())


def document(call: Call) -> str:
    """The passage that a prompt shows."""
    content = call.messages[0]["content"]
    return content[len(FENCE[0]) + 1 : content.index("\n" + FENCE[1])] if content.startswith(FENCE[0]) else ""


def query(call: Call) -> str:
    """The query that a verdict is asked about."""
    return re.search(r"^查询：(.*)$", call.messages[0]["content"], re.MULTILINE)[1]


def good(call: Call) -> Reply:
    """Answers every call as asked."""
    if call.choices:
        return 0.9
    if call.prompt == "persona":
        return json.dumps({"category": "百科", "role": "学生", "scene": "写作业"}, ensure_ascii=False)
    if call.prompt == "query":
        return json.dumps({"query": f"关于{document(call)[:4]}的事"}, ensure_ascii=False)
    count = call.schema["properties"]["queries"]["minItems"]
    queries = [f"{document(call)[:4]}怎么样{i}" for i in range(count)]
    return json.dumps({"queries": queries}, ensure_ascii=False)
