"""One model, read in four ways: checkpoint, FlagEmbedding, sentence-transformers, endpoint."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest

from chuxin import runner
from chuxin.artifacts import Artifact
from chuxin.encoding.agreement import PROBES, require_agreement
from chuxin.encoding.engine import Encoder
from chuxin.errors import InputError, find_input_error
from chuxin.models.checkpoint import save_model
from chuxin.models.config import InitConfig
from chuxin.models.start import new_model, train_tokenizer
from chuxin.recipe import STAGES, RecipeConfig
from chuxin.release.config import ReleaseConfig
from chuxin.release.verify import flagembedding_vectors, sentence_transformers_vectors
from chuxin.serving.config import ServeConfig, ServeExecution
from chuxin.serving.pipeline import call, endpoint, run_forever

pytestmark = [
    pytest.mark.integration,
    # Ray 2.60's own doing: Serve declares its config with keywords that pydantic deprecates, Data sets fields
    # that it deprecates.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

MAX_LENGTH = 128
NAME = "chuxin-test"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> RecipeConfig:
    """A recipe whose model is drawn, not trained: agreement does not depend on what the weights are."""
    root = tmp_path_factory.mktemp("release")
    shape = InitConfig(seed=3, passages="none", max_texts=1, vocab_size=600, layers=2, hidden=64, heads=4,
                       intermediate=128, max_len=MAX_LENGTH)  # fmt: skip
    texts = [text.replace("年", str(year)) for text in PROBES for year in range(20)]
    tokenizer = train_tokenizer(texts, shape.vocab_size, shape.max_len)
    save_model(new_model(shape, len(tokenizer)), tokenizer, str(root / "start"))
    return RecipeConfig(
        name="test",
        workspace=str(root / "runs"),
        init=InitConfig(seed=3, model=str(root / "start")),
        release=ReleaseConfig(model="init", name=NAME, license="apache-2.0", max_len=MAX_LENGTH),
        serve=serve_config(),
    )


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with runner.session(num_cpus=4, dashboard=False):
        yield


@pytest.fixture(scope="module")
def artifacts(recipe: RecipeConfig, session: None) -> dict[str, Artifact]:
    return {bound.stage.name: runner.run_here(bound, recipe) for bound in runner.bind(recipe, STAGES)}


def serve_config(**execution: object) -> ServeConfig:
    execution = {"port": 0, **execution}
    return ServeConfig(model="release", max_length=MAX_LENGTH, token_input="model",
                       execution=ServeExecution(**execution))  # fmt: skip


def test_the_stages_commit_and_agree(artifacts: dict[str, Artifact]) -> None:
    facts = {name: artifact.manifest["facts"] for name, artifact in artifacts.items()}
    assert facts["release"]["least_cosine_flagembedding"] >= 0.9999
    assert facts["release"]["least_cosine_sentence_transformers"] >= 0.9999
    assert facts["serve"]["least_cosine_endpoint"] >= 0.9999
    assert facts["serve"]["model"] == NAME
    card = Path(artifacts["release"].path("model"), "README.md").read_text(encoding="utf-8")
    assert artifacts["init"].fingerprint in card


def test_a_model_that_is_named_by_its_path_has_its_origin_in_the_card(
    recipe: RecipeConfig, artifacts: dict[str, Artifact]
) -> None:
    given = replace(recipe.release, model=artifacts["init"].path("model"))
    apart = RecipeConfig(name="apart", workspace=f"{recipe.workspace}-apart", release=given)
    made = runner.run_here(*runner.bind(apart, STAGES), apart)
    source = artifacts["init"]
    assert made.manifest["inputs"] == {source.uri: {"uri": source.uri, "fingerprint": source.fingerprint}}
    assert f"| init | `{source.fingerprint}` |" in Path(made.path("model"), "README.md").read_text(encoding="utf-8")


def test_the_endpoint_serves_the_checkpoint_s_vectors(artifacts: dict[str, Artifact]) -> None:
    checkpoint, release = artifacts["init"].path("model"), artifacts["release"].path("model")
    encoder = Encoder(checkpoint, MAX_LENGTH, 4 * MAX_LENGTH)
    texts = [t for t, ids in zip(PROBES, encoder.tokenize(PROBES, truncate=False), strict=True)
             if len(ids) <= MAX_LENGTH]  # fmt: skip
    assert len(texts) >= 8
    expected_NH = encoder.encode(texts)
    with endpoint(release, serve_config()) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        for encoding_format in (openai.omit, "float", "base64"):
            answer = client.embeddings.create(model=NAME, input=texts, encoding_format=encoding_format)
            served_NH = np.array([np.frombuffer(_bytes(entry.embedding), "<f4") for entry in answer.data])
            require_agreement(expected_NH, served_NH, f"endpoint, {encoding_format}")
        assert answer.usage.prompt_tokens == sum(map(len, encoder.tokenize(texts)))
        require_agreement(flagembedding_vectors(release, texts, MAX_LENGTH), served_NH, "FlagEmbedding")
        require_agreement(
            sentence_transformers_vectors(release, texts, MAX_LENGTH), served_NH, "sentence-tr."
        )
        by_ids = client.embeddings.create(model=NAME, input=encoder.tokenize(texts))
        require_agreement(expected_NH, np.array([entry.embedding for entry in by_ids.data]), "token ids")
        _many_at_once(client, texts, expected_NH)
        _other_routes(client, url)


def _bytes(embedding: list[float] | str) -> bytes:
    import base64

    return base64.b64decode(embedding) if isinstance(embedding, str) else np.array(embedding, "<f4").tobytes()


def _many_at_once(client: openai.OpenAI, texts: list[str], expected_NH: np.ndarray) -> None:
    """Requests of mixed sizes share batches; each still gets its own vectors."""
    picks = [[(3 * r + i) % len(texts) for i in range(1 + r % 4)] for r in range(40)]

    def ask(pick: list[int]) -> np.ndarray:
        answer = client.embeddings.create(model=NAME, input=[texts[i] for i in pick])
        return np.array([entry.embedding for entry in answer.data])

    with ThreadPoolExecutor(8) as pool:
        for pick, served in zip(picks, pool.map(ask, picks), strict=True):
            np.testing.assert_allclose(served, expected_NH[pick], rtol=0, atol=1e-5)


def _other_routes(client: openai.OpenAI, url: str) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "chuxin"
    assert call(f"{url.removesuffix('/v1')}/health") == {"status": "ok", "model": NAME}
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="another", input="a")
    assert missing.value.code == "model_not_found"
    for wrong in ({"input": ""}, {"input": []}, {"input": "长" * 500}, {"input": "a", "dimensions": 8}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model=NAME, **wrong)
        assert refused.value.type == "invalid_request_error"
    with pytest.raises(InputError, match="answered 404.*Not Found: GET /v1/nothing"):
        call(f"{url}/nothing")
    with pytest.raises(InputError, match="answered 405"):
        call(f"{url}/embeddings")


def test_sigterm_ends_the_server_cleanly(
    artifacts: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ended = []

    def end_when_up() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        time.sleep(3)  # the proxy listens a moment before the replica is up
        ended.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    killer = threading.Thread(target=end_when_up)
    killer.start()
    run_forever(artifacts["release"].path("model"), serve_config(port=port))
    killer.join()
    assert ended and signal.getsignal(signal.SIGTERM) == before
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "stopped"
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) != 0, "the port is free again"


def test_what_the_user_can_put_right_is_said_before_anything_starts(artifacts: dict[str, Artifact]) -> None:
    release = artifacts["release"].path("model")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(InputError, match="the port is taken"),
            endpoint(release, serve_config(port=taken.getsockname()[1])),
        ):
            pass
    with pytest.raises(InputError, match="no such model directory"), endpoint("/no/model", serve_config()):
        pass


def test_a_failing_check_reaches_the_runner_as_the_user_s_error(recipe: RecipeConfig, session: None) -> None:
    import dataclasses

    bad = dataclasses.replace(recipe, release=dataclasses.replace(recipe.release, max_len=999), serve=None)
    bound = {b.stage.name: b for b in runner.bind(bad, STAGES)}
    runner.run_here(bound["init"], bad)
    with pytest.raises(Exception) as caught:
        runner.run_here(bound["release"], bad)
    assert find_input_error(caught.value).where == "release.max_len"
