"""Real models: loading any causal language model of transformers, and pairs in its chat format.

What differs from the toy world is the format. Each chat model was trained on its own marks around
every turn (its *chat template*); log-probabilities of text without them are those of another task.

Leaves out: adapters, which are in :mod:`rlhf_minimal.lora`, and packing.
"""

import importlib.util
import warnings
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from rlhf_minimal.memory import empty_model, return_freed_memory
from rlhf_minimal.pairs import TokenPair
from rlhf_minimal.preferences import split_conversation
from rlhf_minimal.quantized import (
    check_widths,
    kept_whole,
    quantize_model,
    same_numbers_everywhere,
)

__all__ = ["chat_tokens", "load_config", "load_model", "padding_id", "tokenize_preferences"]


def load_model(
    path_or_hub_id, gguf_file=None, dtype=torch.float32, device=None, quantize: bool = False
):
    """A causal language model and its tokenizer, ready to train.

    Args:
        path_or_hub_id: a directory that transformers can load, a ``.gguf`` file, or the name of a
            model on the Hugging Face hub ("organisation/model").
        gguf_file: the name of a GGUF file in that directory; its weights become ``dtype``.
        dtype: of the weights. Where there is no GPU always float32: on a CPU bfloat16 is three to
            five times slower.
        device: where to; a GPU if there is one, else the CPU.
        quantize: keep linear layers but the output layer in 4 bits (NF4, scales doubly quantised).
            A checkpoint that is in 4 bits already stays as it is.

    Returns:
        ``(model, tokenizer)``. Dropout is off and stays off: preference losses compare the
        log-probabilities of policy and reference, and noise in one of them is a difference.

    Raises:
        FileNotFoundError: no such directory, or no such file in it; the message lists what is.
        ImportError: a GGUF file, and the packages that read it are missing.
        OSError: transformers cannot load it, for instance for want of a network.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu" and dtype != torch.float32 and not torch.cuda.is_available():
        warnings.warn(f"{dtype} is slow on a CPU; loading the model in float32", stacklevel=2)
        dtype = torch.float32
    if quantize and device.type == "cpu":  # memory is what is short
        return_freed_memory()
    source, options = _locate(path_or_hub_id, gguf_file)
    on_load = _four_bit_options(source, dtype, device) if quantize and not options else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options, **on_load)
    except (OSError, ValueError, KeyError) as error:
        raise OSError(_why_not_loaded(path_or_hub_id, error)) from error
    if options:
        _forget_quantization(model)
    if quantize and not hasattr(model.config, "quantization_config"):
        quantize_model(model, dtype, device)
    same_numbers_everywhere(model)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def load_config(path_or_hub_id, gguf_file=None):
    """The model's configuration: its shapes, without its weights. Errors as :func:`load_model`."""
    source, options = _locate(path_or_hub_id, gguf_file)
    try:
        return AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise OSError(_why_not_loaded(path_or_hub_id, error)) from error


def _four_bit_options(source, dtype, device) -> dict:
    """What makes transformers quantise while it reads, so that the weights never stand whole."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return {}
    config = AutoConfig.from_pretrained(source)
    if hasattr(config, "quantization_config"):
        return {"device_map": {"": device}}
    shapes = empty_model(config)
    check_widths(shapes, device)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",  # load_in_4bit alone gives FP4
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept_whole(shapes),
    )
    return {"quantization_config": four_bits, "device_map": {"": device}}


def _why_not_loaded(name, error) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "gated" in str(error).lower():
        return (
            f"{str(name)!r} is behind a licence: log in on huggingface.co, accept it on the "
            "model's page, make a read token (Settings, Access Tokens), and run `hf auth login` or "
            "set HF_TOKEN"
        )
    return (
        f"cannot load {str(name)!r}: {reason} Give a directory that holds a model "
        "or the name of a model on the Hugging Face hub and a network to reach it."
    )


def _locate(path_or_hub_id, gguf_file) -> tuple[str, dict]:
    """What to hand to ``from_pretrained``, after the checks whose messages transformers lacks."""
    name, path = str(path_or_hub_id), Path(path_or_hub_id).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        path, gguf_file = path.parent, path.name
    if path.is_dir():
        wanted = gguf_file or "config.json"
        if not (path / wanted).is_file():
            held = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing"
            hint = "" if gguf_file or ".gguf" not in held else "; name the GGUF file to load"
            raise FileNotFoundError(f"{path} holds no {wanted}; it holds {held}{hint}")
    elif path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        # A hub name is "model" or "organisation/model", so this can only be meant as a path.
        raise FileNotFoundError(f"there is no directory {path}")
    if not gguf_file:
        return str(path) if path.is_dir() else name, {}
    missing = [need for need in ("gguf", "accelerate") if importlib.util.find_spec(need) is None]
    if missing:
        raise ImportError(f"a GGUF file needs the package(s): pip install {' '.join(missing)}")
    return str(path) if path.is_dir() else name, {"gguf_file": gguf_file}


def _forget_quantization(model) -> None:
    """Mark a model read from GGUF as what it now is: plain weights, which can be saved."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def padding_id(tokenizer) -> int:
    """What fills the gaps of a batch: the pad token, else the end token, else 0.

    Any token will do, because masks are made from positions. In many models pad *is* the end token
    (SmolLM2 among them); a mask made from ids would hide the end of every answer.
    """
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def chat_tokens(messages, tokenizer, start_answer: bool = False) -> list[int]:
    """A conversation as the model was trained to see it.

    Without a chat template it is a plain transcript of "Human:" and "Assistant:" turns.

    Args:
        messages: ``[{"role": ..., "content": ...}, ...]``.
        start_answer: add what stands before an answer, so that the model goes on with one.

    Raises:
        ValueError: the template refuses the conversation (some insist that speakers alternate).
    """
    if tokenizer.chat_template is None:
        names = {"user": "Human", "assistant": "Assistant", "system": "System"}
        turns = [f"\n\n{names[m['role']]}: {m['content']}" for m in messages]
        text = "".join(turns) + ("\n\nAssistant:" if start_answer else "")
        return tokenizer(text)["input_ids"]
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=start_answer, tokenize=True, return_dict=True
        )["input_ids"]
    except Exception as error:  # a template raises what it likes
        roles = [message["role"] for message in messages]
        raise ValueError(f"the chat template refuses a conversation of {roles}: {error}") from error


def _end_of_turn(tokenizer) -> int:
    """The token that ends an answer: the first special token behind one in the chat template."""
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ANSWER"}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        behind = tokenizer(text.rpartition("ANSWER")[2], add_special_tokens=False)["input_ids"]
        special = [token for token in behind if token in tokenizer.added_tokens_decoder]
        if special:
            return special[0]
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token: the model could not learn to stop")
    return tokenizer.eos_token_id


def _answer_tokens(messages, prompt, answer, tokenizer, end) -> list[int]:
    """The answer's tokens, its end token included, as they stand in the whole conversation."""
    whole = chat_tokens([*messages, {"role": "assistant", "content": answer}], tokenizer)
    if whole[: len(prompt)] == prompt:
        tokens = whole[len(prompt) :]
    else:  # tokens that run across the boundary: the model would go on from the prompt's
        tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if end in tokens:  # what a template writes behind the end token is not the model's to say
        return tokens[: len(tokens) - tokens[::-1].index(end)]
    return [*tokens, end]


def tokenize_preferences(preferences, tokenizer, max_length: int = 256, max_prompt: int = 128):
    """Preferences as token ids in the model's chat format.

    A prompt that is too long loses its beginning (the latest turn matters most), an answer its end;
    an answer that was cut has no end token, because it did not end there.

    Args:
        preferences: :class:`~rlhf_minimal.preferences.Preference` s; prompts are hh-rlhf
            transcripts, or plain text, which is then the user's only turn.
        max_length: tokens of prompt and answer together, at most.
        max_prompt: tokens of the prompt, at most.

    Returns:
        ``(pairs, truncated)``: a :class:`~rlhf_minimal.pairs.TokenPair` for each preference, and
        the number of pairs of which anything was cut.
    """
    if not 0 < max_prompt < max_length:
        raise ValueError(
            f"max_prompt is {max_prompt} and max_length {max_length}; the prompt needs a token or "
            "more and must leave room for the answer"
        )
    if tokenizer.chat_template is None:
        warnings.warn("no chat template: using plain Human:/Assistant: transcripts", stacklevel=2)
    end = _end_of_turn(tokenizer)
    pairs, truncated = [], 0
    for preference in preferences:
        messages = split_conversation(preference.prompt)
        prompt = chat_tokens(messages, tokenizer, start_answer=True)
        answers = [
            _answer_tokens(messages, prompt, answer.strip(), tokenizer, end)
            for answer in (preference.chosen, preference.rejected)
        ]
        short = prompt[-max_prompt:]
        room = max_length - len(short)
        truncated += len(short) < len(prompt) or max(map(len, answers)) > room
        pairs.append(TokenPair(short, answers[0][:room], answers[1][:room]))
    return pairs, truncated
