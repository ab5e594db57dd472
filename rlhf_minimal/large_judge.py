"""Any chat model of transformers as a judge: the same three questions, in its own chat format.

    judge = LargeJudge(*load_model("HuggingFaceTB/SmolLM2-135M-Instruct"))
    judge.compare([question], [one_answer], [other_answer])

Offers what :class:`rlhf_minimal.toy_judge.ToyJudge` offers, so every measure of
:mod:`rlhf_minimal.ai_feedback` takes either.

Leaves out: judges behind a paid interface; few-shot examples in the prompt.
"""

import torch

from rlhf_minimal.ai_feedback import soft_preference
from rlhf_minimal.judge_prompts import pairwise_prompt, single_prompt
from rlhf_minimal.large_models import chat_tokens, padding_id
from rlhf_minimal.log_probs import pad_sequences
from rlhf_minimal.sampling import generate

__all__ = ["LargeJudge"]


class LargeJudge:
    """Judges with a causal language model and its tokenizer, as ``load_model`` gives them.

    Args:
        batch_size: texts that go through the model at once.
        low, high: the ends of the scale of grades, digits both.
    """

    def __init__(self, model, tokenizer, batch_size: int = 4, low: int = 0, high: int = 5):
        if not 0 <= low < high <= 9:
            raise ValueError(f"the scale is {low} to {high}; its ends must be digits, low first")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.low, self.high = low, high

    def compare(self, prompts, firsts, seconds, references=None):
        """P(first is better) from the probabilities of A and B behind "(", ``(N,)``."""
        rows = zip(prompts, firsts, seconds, references or [None] * len(prompts), strict=True)
        texts = [pairwise_prompt(*row, explain=False) for row in rows]
        logits = self._next_logits(texts, "(", ["A", "B"])
        return soft_preference(logits[:, 0], logits[:, 1])

    def verdicts(
        self, prompts, firsts, seconds, references=None, explain: bool = True, max_new_tokens=60
    ) -> list[str]:
        """What the model says when it is asked for (a reason and) a verdict, the likeliest words.

        Texts for :func:`~rlhf_minimal.judge_prompts.parse_verdict`, untidy as they come.
        """
        rows = zip(prompts, firsts, seconds, references or [None] * len(prompts), strict=True)
        return self._say([pairwise_prompt(*row, explain) for row in rows], max_new_tokens)

    def scores(self, prompts, answers, references=None, samples: int = 0, generator=None):
        """Grades: the expected one ``(N,)``, or ``samples`` drawn ones ``(N, S)``."""
        rows = zip(prompts, answers, references or [None] * len(prompts), strict=True)
        texts = [single_prompt(*row, low=self.low, high=self.high) for row in rows]
        grades = range(self.low, self.high + 1)
        logits = self._next_logits(texts, "Score: [[", [str(grade) for grade in grades])
        probabilities, values = logits.softmax(-1), torch.tensor([float(g) for g in grades])
        if samples:
            return values[probabilities.multinomial(samples, True, generator=generator)]
        return probabilities @ values

    def _prompt_tokens(self, text: str) -> list[int]:
        messages = [{"role": "user", "content": text}]
        return list(chat_tokens(messages, self.tokenizer, start_answer=True))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _word_ids(self, start: str, words) -> list[int]:
        """The token of each word behind ``start``; it must be one, and not grown into it."""
        begin, ids = self._ids(start), []
        for word in words:
            whole = self._ids(start + word)
            if whole[:-1] != begin:
                raise ValueError(f"{word!r} behind {start!r} is not one token of this tokenizer")
            ids.append(whole[-1])
        return ids

    @torch.no_grad()
    def _next_logits(self, texts, start: str, words):
        """Logits ``(N, words)`` of some words, where the model's reply begins with ``start``."""
        ids = self._word_ids(start, words)
        rows = [self._prompt_tokens(text) + self._ids(start) for text in texts]
        device, found = next(self.model.parameters()).device, []
        for batch in _batches(rows, self.batch_size):
            tokens, mask = pad_sequences(batch, padding_id(self.tokenizer))
            logits = self.model(tokens.to(device), attention_mask=mask.to(device)).logits
            last = (mask.sum(-1) - 1).to(device)
            rows_at_last = logits[torch.arange(len(batch), device=device), last]  # (B, V)
            found.append(rows_at_last[:, ids].float().cpu())
        return torch.cat(found)

    def _say(self, texts, max_new_tokens: int) -> list[str]:
        pad, device = padding_id(self.tokenizer), next(self.model.parameters()).device
        end, said = self.tokenizer.eos_token_id, []
        for batch in _batches([self._prompt_tokens(text) for text in texts], self.batch_size):
            tokens, mask = pad_sequences(batch, pad, left=True)
            options = dict(max_new_tokens=max_new_tokens, end_id=end, pad_id=pad, temperature=0)
            whole, _ = generate(self.model, tokens.to(device), mask.to(device), **options)
            replies = whole[:, tokens.shape[1] :]
            said += self.tokenizer.batch_decode(replies, skip_special_tokens=True)
        return said


def _batches(rows, size: int):
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
