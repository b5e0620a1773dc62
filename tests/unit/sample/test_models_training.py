"""The sample models' training data: forms of queries, calls with their answers, the tokenizer, trees of tokens."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from chuxin.models.packed import embed
from chuxin.sample.config import SampleConfig
from chuxin.sample.training import calls, facts, forms, reading, tokenizer, train_llm, train_reranker, trees
from chuxin.sample.world import DOMAINS, entity, held_out, passages
from chuxin.synthesis import render

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def lessons():
    rng = random.Random(11)
    return [calls.lesson(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def vocabulary():
    return train_llm.new_tokenizer(seed=1, lessons=150)


@pytest.fixture(scope="module")
def model(vocabulary):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=640, tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def test_no_entity_that_a_recipe_holds_out_is_learned_from():
    recipes = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "jobs/configs").rglob("recipe.yaml"))]
    worlds = [recipe["sample"] for recipe in recipes if "sample" in recipe]
    assert worlds
    for world in worlds:
        config = SampleConfig(**world)
        assert dict(calls.HELD_OUT)[config.seed] >= held_out(config)
        names = {entity(config.seed, d, index).name for d in DOMAINS for index in range(held_out(config))}
        assert names <= calls.held_out_names()
    rng = random.Random(3)
    drawn = [calls.training_entity(rng) for _ in range(300)]
    drawn += [calls.neighbour(rng, one) for one in drawn]
    assert not {one.name for one in drawn} & calls.held_out_names()


@pytest.mark.parametrize("kind", forms.FRAMES)
def test_queries_are_of_their_kind_and_share_no_long_run_with_their_passage(kind):
    rng = random.Random(kind)
    right = 0
    for _ in range(60):
        passage = rng.choice(passages(5, calls.training_entity(rng)))
        masked = forms.without_names(passage.text, {passage.entity: None})
        ask = (kind, rng.choice(forms.DIFFICULTIES), rng.choice(list(forms.LENGTHS)))
        query = forms.write(rng, passage, rng.choice(passage.told), ask, masked)
        assert forms.kind_of(query.text) == kind
        assert 2 <= len(query.text) <= 63
        runs = {query.text[i : i + 7] for i in range(len(query.text) - 6)}
        assert not any(run in masked for run in runs)
        right += forms.length_of(query.text) == ask[2]
    assert right > 30  # a long claim of few words, say, has no form


@given(st.text("甲乙丙\0", max_size=12), st.text("甲乙丙", max_size=8))
@settings(max_examples=100, deadline=None)
def test_shared_run_is_the_longest_common_substring(text, query):
    runs = [j - i for i in range(len(query)) for j in range(i + 1, len(query) + 1) if query[i:j] in text]
    assert forms.shared_run(query, text) == max(runs, default=0)


def test_values_are_read_off_passages():
    rng, seen = random.Random(2), 0
    for _ in range(40):
        for passage in passages(5, calls.training_entity(rng)):
            for attribute in passage.told:
                value = forms.value_told(passage, attribute)
                told = [said.format(value) for said in attribute.says.split("|")]
                assert not value or any(text in passage.text for text in told)
                seen += bool(value)
    assert seen > 500


def test_prompts_are_those_of_the_synthesis_line():
    rng = random.Random(4)
    asks = [calls.ask(rng) for _ in range(3)]
    assert calls.KIND_WORDS == render.KINDS
    assert calls.DIFFICULTY_WORDS == render.DIFFICULTIES
    assert {n: (calls.LENGTH_WORDS[n], *forms.LENGTHS[n]) for n in forms.LENGTHS} == render.LENGTHS
    assert calls.describe(asks) == render.describe([render.Ask(*ask) for ask in asks])
    assert {c: render.CATEGORIES[c] for c in calls.FORMS} == calls.FORMS
    fields = {
        "rich": {"passage": "文{}", "count": 3, "asks": calls.describe(asks)}, "persona": {"passage": "文"},
        "query": {"passage": "文", "category": "医疗", "role": "患者", "scene": "挂号", "form": "口语"},
        "gate": {"passage": "文"}, "answered": {"passage": "文", "query": "问"}, "standalone": {"query": "问"},
        "searchable": {"query": "问"}, "single_intent": {"query": "{passage}"},
    }
    assert set(fields) == set(train_llm.CALLS)
    for name, given_fields in fields.items():
        assert [{"role": "user", "content": calls.render(name, **given_fields)}] == render.render(name, **given_fields)


def test_answers_are_what_the_synthesis_line_takes(lessons):
    for call in (call for _, made in lessons for call in made):
        if call.name in ("rich", "persona", "query"):
            value = json.loads(call.answer)
            assert call.answer == json.dumps(value, ensure_ascii=False)
        if call.name == "rich":
            assert call.prompt.count("，") and all(2 <= len(query) <= 63 for query in value["queries"])
        elif call.name == "persona":
            assert value["category"] in render.CATEGORIES
            assert len(value["role"]) <= render.ROLE_CHARS and len(value["scene"]) <= render.SCENE_CHARS
        elif call.name != "query":
            assert call.answer in (render.YES, render.NO)


def test_documents_hold_their_passages_whole(lessons):
    for page, _ in lessons:
        assert all(passage.text in page.text for passage in page.told)


def test_a_verdict_on_an_answer_follows_from_the_facts():
    rng = random.Random(6)
    mine = passages(5, calls.training_entity(rng))
    one = mine[0]
    page = calls.Document(one.text, (one,), one.text)
    asked = forms.Written("", one.entity, one.varying, one.when.said, "", "", "")
    assert calls.answers(page, asked)
    assert not calls.answers(page, asked._replace(when="另一年"))
    assert calls.answers(page, asked._replace(when=""))
    untold = next(a for topic in one.entity.domain.topics for a in topic.attributes if a not in one.told)
    assert not calls.answers(page, asked._replace(attribute=untold))
    assert not calls.answers(page, asked._replace(subject=calls.training_entity(rng)))


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_tokenizer_loses_nothing(vocabulary, text):
    assert vocabulary.decode(vocabulary(text)["input_ids"]) == text


def test_the_tokenizer_is_the_same_every_time(vocabulary):
    again = train_llm.new_tokenizer(seed=1, lessons=150)
    assert again.backend_tokenizer.to_str() == vocabulary.backend_tokenizer.to_str()


def test_verdicts_and_fixed_parts_are_single_tokens(vocabulary, lessons):
    for text in (*"是否", *train_llm.fixed_parts(), *tokenizer.GLUE):
        assert len(vocabulary(text)["input_ids"]) == 1, text
    letters = tokenizer.byte_letters()
    byte_of = {letter: byte for byte, letter in enumerate(letters)}
    pieces = [token for token in vocabulary.get_vocab() if set(token) <= set(letters)]
    whole = 0
    for token in pieces:
        spelled = bytes(byte_of[letter] for letter in token)
        whole += spelled.decode(errors="ignore").encode() == spelled
    assert whole > 0.6 * len(pieces)  # the others are bytes, and what builds a character of them


def test_a_chat_ends_where_the_answer_begins(vocabulary):
    chat = [{"role": "user", "content": "问"}]
    ids = vocabulary.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert vocabulary.convert_ids_to_tokens(ids)[0] == tokenizer.USER
    assert vocabulary.convert_ids_to_tokens(ids)[-1] == tokenizer.ASSISTANT
    answered = vocabulary.apply_chat_template([*chat, {"role": "assistant", "content": "是"}], tokenize=False)
    assert answered == "<|user|>问<|assistant|>是<|end|>"


def test_a_tree_equals_its_calls_one_by_one(vocabulary, model, lessons):
    kept = [trees.tree(vocabulary, page, made) for page, made in lessons[:3]]
    heads = reading.Heads(32)
    together = 0.0
    for one in trees.batches(kept, 10**9, vocabulary.pad_token_id):
        together += train_llm.losses(model, heads, one).answers.item()
    alone = 0.0
    for _, made in lessons[:3]:
        for call in made:
            chat = [{"role": "user", "content": call.prompt}]
            prompt = vocabulary.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            answer = [*vocabulary(call.answer)["input_ids"], vocabulary.eos_token_id]
            ids = torch.tensor([[*prompt, *answer]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1]
            losses = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="none")
            if len(answer) == 2:
                losses[0] *= trees.VERDICT_WEIGHT
            alone += losses.sum().item()
    assert together == pytest.approx(alone, rel=1e-4)


def test_heads_read_the_query_and_learn_all_that_they_are_taught(vocabulary, model, lessons):
    heads = reading.Heads(32)
    kept = [trees.tree(vocabulary, page, made) for page, made in lessons[:3]]
    (one,) = trees.batches(kept, 10**9, vocabulary.pad_token_id)
    shown = reading.shown(one)
    assert len(shown) == 3 * calls.ANSWERED
    for place, known in shown:
        query = reading.query_ids(place)
        assert vocabulary.decode(query) == place.branch.call.query.text == known.query
        assert one.ids_NL[place.row, place.at + 1 : place.at + 1 + len(query)].tolist() == query
        assert (place.branch.call.answer == calls.YES) == known.label
    found = train_llm.losses(model, heads, one)
    assert found.verdicts == len(shown) and 0 <= found.right <= found.verdicts and found.foreseen <= found.tokens
    sum(found.heads).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() for p in heads.parameters())
    model.zero_grad()


def test_new_layers_find_equal_tokens(vocabulary, lessons):
    made = train_llm.new_model(vocabulary, seed=3)
    made.config._attn_implementation = "eager"
    first, width = train_llm.MATCHING[0], 64
    ids = vocabulary(f"{tokenizer.USER}{lessons[0][0].text}")["input_ids"][:width]
    with torch.no_grad():
        attention_SS = made.model(input_ids=torch.tensor([ids]), output_attentions=True).attentions[first][0].mean(0)
    again, new, itself = [], [], []
    for place in range(8, len(ids)):  # what tells a token from itself takes a few tokens to fade
        equal = [before for before in range(place) if ids[before] == ids[place]]
        if equal:
            again.append(attention_SS[place, equal].sum())
        else:
            new.append(attention_SS[place, 0])
        itself.append(attention_SS[place, place])
    assert len(again) > 5 and torch.stack(again).mean() > 0.6 and torch.stack(new).mean() > 0.6
    assert torch.stack(itself).mean() < 0.2


def test_a_model_grows_by_the_layers_that_match(vocabulary):
    made, again = (train_llm.new_model(vocabulary, seed) for seed in (3, 4))
    old = Qwen2ForCausalLM(Qwen2Config(**{**made.config.to_dict(), "num_hidden_layers": 4, "layer_types": None}))
    drawn = [made.model.layers[number].self_attn.q_proj.weight.clone() for number in train_llm.MATCHING]
    train_llm.grow(made, old, vocabulary.convert_tokens_to_ids(tokenizer.USER))
    kept = [layer for number, layer in enumerate(made.model.layers) if number not in train_llm.MATCHING]
    for layer, before in zip(kept, old.model.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), before.parameters(), strict=True))
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert not torch.equal(drawn[0], made.model.layers[train_llm.MATCHING[0]].self_attn.q_proj.weight)
    train_llm.grow(again, made, 0)  # one that has grown is taken as it is
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), made.parameters(), strict=True))


def test_a_step_learns():
    assert train_llm.rate(0, 1000) < train_llm.rate(train_llm.WARM_UP, 1000) == 1.0
    assert train_llm.rate(999, 1000) < 0.01


def test_pairs_are_labelled_by_what_documents_tell():
    rng = random.Random(8)
    groups = [train_reranker.examples(rng) for _ in range(60)]
    assert all(group[0].label for group in groups)
    assert sum(one.label for group in groups for one in group[1:6]) < 0.2 * 5 * len(groups)
    assert not any(one.document for group in groups for one in group[6:])
    for one in (one for group in groups for one in group):
        assert len(one.classes) == len(facts.CLASSES)
        inside = zip(one.classes, facts.CLASSES, strict=True)
        assert all(number == facts.UNKNOWN or 0 <= number < count for number, count in inside)
        assert len(one.matches) == facts.MATCHES
        assert all(0 <= number < facts.TOLD for number in one.told)
        # What answers matches in everything that is known.
        assert not (one.document and one.label) or 0 not in one.matches


def test_what_a_query_token_shares_with_a_document():
    found = facts.copies([7, 8, 9, 7], [1, 7, 8, 3, 9])
    assert found == [(1.0, 0.0), (1.0, 1.0), (1.0, 0.0), (1.0, 0.0)]


def test_a_new_reranker_attends_to_equal_tokens():
    vocab, model = train_reranker.new_reranker(5, lessons=40)
    rng = random.Random(9)
    one = train_reranker.joined([example for _ in range(4) for example in train_reranker.examples(rng)], vocab)
    with torch.no_grad():
        states_TH = embed(model.backbone, one.packed)
        layer = model.backbone.encoder.layer[0].attention.self
        query_TAD, key_TAD = (part(states_TH).unflatten(1, (3, 64)) for part in (layer.query, layer.key))
        score_TT = torch.einsum("tad,sad->ts", query_TAD, key_TAD) / 3 / 64**0.5
    ids_T = one.packed.ids_T
    equal_TT = ids_T[:, None] == ids_T[None]
    assert score_TT[equal_TT].mean() > score_TT[~equal_TT].mean() + 5 * score_TT[~equal_TT].std()


def test_a_reranker_step_reads_all_that_it_is_taught():
    vocab, model = train_reranker.new_reranker(5, lessons=40)
    heads = train_reranker.Heads(model.backbone.config.hidden_size)
    rng = random.Random(10)
    one = train_reranker.joined([example for _ in range(3) for example in train_reranker.examples(rng)], vocab)
    starts_N = one.packed.bounds_N1[:-1]
    assert (one.query_Q > starts_N[one.owner_Q]).all() and one.paired_N[one.owner_Q].all()
    logit_N, loss, terms = train_reranker.loss_terms(model, heads, one)
    assert logit_N.shape == one.label_N.shape and len(terms) == len(facts.CLASSES) + 4
    (loss + sum(terms)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    assert model.backbone.encoder.layer[0].attention.self.key.weight.grad.abs().sum() > 0
