"""What `large_models.py` promises: models load or say why not, and pairs keep the chat format."""

import importlib.util
import os
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

from rlhf_minimal.large_models import chat_tokens, load_model, padding_id, tokenize_preferences
from rlhf_minimal.log_probs import answer_log_probs, sequence_log_probs, token_log_probs
from rlhf_minimal.pairs import distinct_answers, pair_log_probs
from rlhf_minimal.preferences import Preference, split_conversation

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.eos_token_id
TWO_TURNS = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Tea?\n\nAssistant:"
PAIRS = [
    Preference(TWO_TURNS, " Yes please", " no"),
    Preference("\n\nHuman: a\n\nAssistant:", "b", "ccc"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


# Loading


def test_a_saved_model_loads_in_float32_with_its_weights(saved):
    model, tokenizer = load_model(saved, device="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert tokenizer.chat_template == CHAT_TEMPLATE
    for name, weight in tiny_model().state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)


def test_on_a_cpu_other_dtypes_become_float32_with_a_warning(saved):
    with pytest.warns(UserWarning, match="slow on a CPU"):
        model, _ = load_model(saved, dtype=torch.bfloat16, device="cpu")
    assert model.dtype == torch.float32


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no directory .*nowhere"):
        load_model(tmp_path / "nowhere")


def test_a_directory_without_the_file_says_what_it_holds(tmp_path):
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(FileNotFoundError, match=r"no config\.json; it holds weights\.gguf; name"):
        load_model(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no other\.gguf; it holds weights\.gguf$"):
        load_model(tmp_path, "other.gguf")


def test_a_directory_that_holds_no_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OSError, match=r"cannot load .* Give a directory"):
        load_model(tmp_path)


def test_missing_gguf_packages_are_named(tmp_path, monkeypatch):
    (tmp_path / "weights.gguf").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gguf accelerate"):
        load_model(tmp_path / "weights.gguf")


def test_a_hub_that_cannot_be_reached_ends_in_a_sentence(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co'.\nMore lines.")

    monkeypatch.setattr("rlhf_minimal.large_models.AutoTokenizer.from_pretrained", unreachable)
    with pytest.raises(OSError, match=r"cannot load 'org/model': We couldn't connect.* a network"):
        load_model("org/model")


@pytest.mark.skipif("RLHF_GGUF_FILE" not in os.environ, reason="RLHF_GGUF_FILE names no file")
def test_a_gguf_model_can_be_saved_and_loaded_again(tmp_path):
    model, tokenizer = load_model(Path(os.environ["RLHF_GGUF_FILE"]), device="cpu")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, tokenizer_again = load_model(tmp_path, device="cpu")
    pairs, _ = tokenize_preferences(PAIRS, tokenizer)
    assert pairs == tokenize_preferences(PAIRS, tokenizer_again)[0]
    with torch.no_grad():
        first, second = (pair_log_probs(m, pairs, padding_id(tokenizer)) for m in (model, again))
    torch.testing.assert_close(first.chosen, second.chosen, rtol=0, atol=0)


# The chat format

words = st.text(st.sampled_from("ab \n:é<|"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(words, min_size=1, max_size=5), chosen=words, rejected=words)
def test_prompt_and_answer_are_the_template_s_conversation(turns, chosen, rejected):
    if chosen == rejected:
        return
    speakers = ["Human", "Assistant"] * 3
    prompt = "".join(f"\n\n{s}: {t}" for s, t in zip(speakers, turns, strict=False))
    messages = split_conversation(prompt)
    ((tokens,), truncated) = tokenize_preferences(
        [Preference(prompt + "\n\nAssistant:", chosen, rejected)], TOKENIZER, 10_000, 5_000
    )
    for answer, ids in ((chosen, tokens.chosen), (rejected, tokens.rejected)):
        last_turn = {"role": "assistant", "content": answer.strip()}
        whole = chat_tokens([*messages, last_turn], TOKENIZER)
        newline = TOKENIZER("\n")["input_ids"]  # the template's, behind the end token
        assert tokens.prompt + ids + newline == whole
        assert ids[-1] == END
        assert TOKENIZER.decode(ids[:-1]) == answer.strip()
    assert truncated == 0


def test_the_end_token_counts_though_it_is_the_pad_token():
    pairs, _ = tokenize_preferences(PAIRS, TOKENIZER)
    assert padding_id(TOKENIZER) == END
    batch = distinct_answers(pairs, padding_id(TOKENIZER))
    tokens, attention_mask, mask, *numbers = batch
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    for row, answer in zip(torch.cat(numbers).tolist(), answers, strict=True):
        counted = tokens[row][mask[row] == 1].tolist()
        assert counted == answer
        assert counted.count(END) == 1
    assert bool((attention_mask == 0).any())  # there is padding, and it does not count
    assert int(mask.sum()) == sum(map(len, answers))


def test_long_prompts_lose_their_beginning_and_long_answers_their_end():
    (whole, other), _ = tokenize_preferences(PAIRS, TOKENIZER)
    limit = len(whole.prompt) - 5
    (cut, same), truncated = tokenize_preferences(PAIRS, TOKENIZER, limit + 6, limit)
    assert cut.prompt == whole.prompt[5:]
    assert cut.chosen == whole.chosen[:6]
    assert END not in cut.chosen
    assert cut.rejected == whole.rejected  # "no" and its end token fit
    assert cut.rejected[-1] == END
    assert same == other
    assert truncated == 1


@pytest.mark.parametrize(("max_length", "max_prompt"), [(10, 10), (10, 0), (0, 5)])
def test_lengths_must_leave_room_for_both(max_length, max_prompt):
    with pytest.raises(ValueError, match=f"max_prompt is {max_prompt} and max_length {max_length}"):
        tokenize_preferences(PAIRS, TOKENIZER, max_length, max_prompt)


def test_without_a_template_it_is_a_plain_transcript_and_says_so():
    plain = tiny_tokenizer(chat_template=None)
    with pytest.warns(UserWarning, match="no chat template"):
        (pair, _), _ = tokenize_preferences(PAIRS, plain)
    assert plain.decode(pair.prompt) == TWO_TURNS
    assert plain.decode(pair.chosen) == " Yes please<|im_end|>"


def test_the_end_of_a_turn_is_the_template_s_even_where_the_end_of_text_is_another():
    tokenizer = tiny_tokenizer(eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    pairs, _ = tokenize_preferences(PAIRS, tokenizer)
    assert tokenizer.decode(pairs[0].chosen) == "Yes please<|im_end|>"


def test_a_tokenizer_without_an_end_token_is_refused():
    tokenizer = tiny_tokenizer(chat_template=None, eos_token=None, pad_token=None)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="no end token"):
        warnings.simplefilter("ignore")
        tokenize_preferences(PAIRS, tokenizer)
    assert padding_id(tokenizer) == 0


def test_a_conversation_that_the_template_refuses_is_shown():
    strict = tiny_tokenizer("{{ raise_exception('speakers must alternate') }}")
    with pytest.raises(ValueError, match=r"refuses a conversation of \['user'\].*must alternate"):
        chat_tokens([{"role": "user", "content": "a"}], strict)


# One code path for transformers models


def test_answer_log_probs_of_a_llama_equal_those_from_its_full_logits():
    model = tiny_model()
    pairs, _ = tokenize_preferences(PAIRS, TOKENIZER)
    tokens, attention_mask, mask, *_ = distinct_answers(pairs, padding_id(TOKENIZER))
    with torch.no_grad():
        logits = model(tokens, attention_mask=attention_mask).logits
        few = answer_log_probs(model, tokens, attention_mask, mask)
    full = token_log_probs(logits, tokens) * mask[:, 1:]
    # float32 sums over 258 logits of size about 1: some tens of ulps.
    torch.testing.assert_close(few, full, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        few.sum(-1), sequence_log_probs(logits, tokens, mask), rtol=1e-5, atol=1e-5
    )


def test_a_pair_s_log_probs_do_not_depend_on_its_neighbours():
    model = tiny_model()
    pairs, _ = tokenize_preferences(PAIRS, TOKENIZER)
    with torch.no_grad():
        together = pair_log_probs(model, pairs, padding_id(TOKENIZER))
        alone = [pair_log_probs(model, [pair], padding_id(TOKENIZER)) for pair in pairs]
    torch.testing.assert_close(together.chosen, torch.cat([a.chosen for a in alone]))
    torch.testing.assert_close(together.rejected, torch.cat([a.rejected for a in alone]))
