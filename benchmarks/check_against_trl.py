"""Our losses beside those of TRL, Stable-Baselines3 and torch, on the same random inputs.

    python -m venv peers
    peers/bin/pip install -c constraints.txt torch transformers trl stable-baselines3
    peers/bin/python benchmarks/check_against_trl.py

TRL keeps its losses inside trainers, so each is built here around a tiny random model and asked for
the loss of a batch; ours is computed from the same model's logits. Compared are the value and the
gradient, the latter in all of the model's weights. Prints a table, writes ``benchmarks/trl.json``,
and exits with 1 if anything that should agree does not. Where conventions differ, a row says how
ours is called to give theirs, and another that called plainly it would not.

Leaves out: PPO for language models, which TRL 1.16 no longer has; GAE is held against
Stable-Baselines3 instead.
"""

import copy
import json
import platform
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlhf_minimal import dpo, grpo, kl, log_probs, ppo_losses, reward_model, rlhf  # noqa: E402

TOLERANCE = 2e-5    # float32, relative to the larger of 1 and their largest number
WORDS = [f"w{i}" for i in range(60)]


class Table:
    """The rows, and whether all that should agree did."""

    def __init__(self):
        self.rows = []

    def add(self, ours, theirs, pairs, note="", agree=True, names=("value", "gradient")) -> None:
        """``pairs``: (our number, their number) of what ``names`` says.

        With ``agree=False`` the row documents a difference of convention, and has to differ.
        """
        apart = [_apart(a, b) for a, b in pairs]
        kept = all(d <= TOLERANCE for d in apart) if agree else max(apart) > 1e-3
        self.rows.append(
            {"ours": ours, "theirs": theirs, **dict(zip(names, apart, strict=False)),
             "expected": "agree" if agree else "differ", "kept": kept, "note": note}
        )

    def print(self) -> None:
        width = max(len(row["ours"]) for row in self.rows)
        wide = max(len(row["theirs"]) for row in self.rows)
        print(f"{'ours':{width}}  {'theirs':{wide}}  {'value':>8}  {'gradient':>8}  ")
        for row in self.rows:
            numbers = [f"{row[k]:8.1e}" if k in row else f"{'–':>8}" for k in ("value", "gradient")]
            state = {True: "", False: "  FAILED"}[row["kept"]]
            if row["expected"] == "differ" and row["kept"]:
                state = "  differs, as it should"
            print(f"{row['ours']:{width}}  {row['theirs']:{wide}}  {'  '.join(numbers)}{state}")
            if row["note"]:
                print(f"{'':{width}}    {row['note']}")


def _apart(ours, theirs) -> float:
    """Largest difference, in units of the larger of 1 and their largest number."""
    ours, theirs = (torch.as_tensor(x).detach().double().flatten() for x in (ours, theirs))
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)} differ")
    if not (ours.isfinite().all() and theirs.isfinite().all()):
        return float("inf")
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1.0)).item()


# --- what the trainers need -----------------------------------------------------------------------


def tokenizer():
    """A word a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def config(**options):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=1, bos_token_id=1, initializer_range=0.3, **options,
    )


def two_models():
    """A policy and a reference some way from it."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    policy = LlamaForCausalLM(config())
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return policy, reference


def sentences(count: int, seed: int) -> list[str]:
    """Random words, of different lengths."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(count)]


def preference_data(count: int = 6, **columns):
    from datasets import Dataset

    names = ("prompt", "chosen", "rejected")
    texts = {name: sentences(count, seed) for seed, name in enumerate(names)}
    texts = {k: v if k == "prompt" else [" " + text for text in v] for k, v in texts.items()}
    return Dataset.from_dict({**texts, **columns})


def settings(cls, folder, **options):
    """The trainer's configuration for a batch of six on a CPU in float32."""
    common = dict(use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
                  per_device_train_batch_size=6, gradient_checkpointing=False, seed=0)
    return cls(output_dir=folder, **{**common, **options})


def gradient(loss, model):
    """In all weights that the loss depends on, as one vector."""
    weights = [w for w in model.parameters() if w.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten()
                      for w, g in zip(weights, found, strict=True)])


def value_and_gradient(loss, model):
    return loss.detach(), gradient(loss, model)


def compare_losses(table, ours, theirs, our_loss, their_loss, model, note="", agree=True):
    a, b = (value_and_gradient(loss, model) for loss in (our_loss, their_loss))
    table.add(ours, theirs, zip(a, b, strict=True), note, agree)


# --- preference losses ----------------------------------------------------------------------------


def sides(reduce, model, batch):
    """Log-probabilities of the chosen and of the rejected answers by ours, ``(B,)`` each."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return reduce(logits, batch["input_ids"], batch["completion_mask"]).chunk(2)


def four(reduce, policy, reference, batch):
    """What the DPO losses take: policy's chosen and rejected, reference's chosen and rejected."""
    with torch.no_grad():
        expected = sides(reduce, reference, batch)
    return (*sides(reduce, policy, batch), *expected)


def dpo_trainer(folder, loss_type, smoothing=0.0, beta=0.3):
    from trl import DPOConfig, DPOTrainer

    policy, reference = two_models()
    options = dict(loss_type=[loss_type], label_smoothing=smoothing, beta=beta, max_length=64)
    args = settings(DPOConfig, folder, **options)
    trainer = DPOTrainer(policy, reference, args, train_dataset=preference_data(),
                         processing_class=tokenizer())
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer, trainer.model, reference, batch


def check_dpo(table, folder):
    beta, smoothing = 0.3, 0.1
    sums = log_probs.sequence_log_probs
    trainer, policy, reference, batch = dpo_trainer(folder, "sigmoid")
    data = four(sums, policy, reference, batch)
    compare_losses(table, "dpo_loss", "DPOTrainer sigmoid", dpo.dpo_loss(*data, beta),
                   trainer.compute_loss(policy, dict(batch)), policy)

    trainer, policy, reference, batch = dpo_trainer(folder, "sigmoid", smoothing)
    data = four(sums, policy, reference, batch)
    compare_losses(
        table, "dpo_loss, smoothing 0.1", "DPOTrainer sigmoid, smoothing 0.1",
        dpo.dpo_loss(*data, beta, smoothing), trainer.compute_loss(policy, dict(batch)), policy,
        "this TRL's sigmoid loss takes no notice of label_smoothing", agree=False,
    )

    trainer, policy, reference, batch = dpo_trainer(folder, "robust", smoothing)
    chosen, rejected, ref_chosen, ref_rejected = four(sums, policy, reference, batch)
    kept = dpo.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    flipped = dpo.dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta)
    robust = ((1 - smoothing) * kept - smoothing * flipped) / (1 - 2 * smoothing)
    theirs = trainer.compute_loss(policy, dict(batch))
    compare_losses(
        table, "dpo_loss: ((1−ε)·L(h) − ε·L(−h))/(1−2ε)", "DPOTrainer robust", robust, theirs,
        policy, "robust DPO corrects for flipped labels: the sign of ε is the other one",
    )

    trainer, policy, reference, batch = dpo_trainer(folder, "aot", smoothing)
    one = {key: tensor[[0, 6]] for key, tensor in batch.items()}
    data = four(sums, policy, reference, one)
    compare_losses(
        table, "dpo_loss, smoothing 0.1", "DPOTrainer aot, a pair a batch",
        dpo.dpo_loss(*data, beta, smoothing), trainer.compute_loss(policy, dict(one)), policy,
        "with one pair AOT's sorting does nothing, and conservative DPO is left",
    )


def check_ipo(table, folder):
    trainer, policy, reference, batch = dpo_trainer(folder, "ipo")
    for name, reduce, agree, note in (
        ("ipo_loss of means", log_probs.mean_log_probs, True,
         "TRL averages over an answer's tokens"),
        ("ipo_loss of sums", log_probs.sequence_log_probs, False,
         "the paper's h is of whole answers, a sum over tokens"),
    ):
        ours = dpo.ipo_loss(*four(reduce, policy, reference, batch), 0.3)
        theirs = trainer.compute_loss(policy, dict(batch))
        compare_losses(table, name, "DPOTrainer ipo", ours, theirs, policy, note, agree)


def check_cpo(table, folder):
    """SimPO lives in the CPO trainer, which also smooths labels."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    policy, _ = two_models()
    options = dict(loss_type="simpo", cpo_alpha=0.0, beta=2.0, simpo_gamma=0.7, max_length=64)
    trainer = CPOTrainer(policy, settings(CPOConfig, folder, **options),
                         train_dataset=preference_data(), processing_class=tokenizer())
    batch = next(iter(trainer.get_train_dataloader()))
    means = []
    for side in ("chosen", "rejected"):
        tokens, labels = batch[f"{side}_input_ids"], batch[f"{side}_labels"]
        logits = trainer.model(tokens, attention_mask=batch[f"{side}_attention_mask"]).logits
        means.append(log_probs.mean_log_probs(logits, tokens, (labels != -100).long()))
    compare_losses(table, "simpo_loss", "CPOTrainer simpo, cpo_alpha 0",
                   dpo.simpo_loss(*means, beta=2.0, margin=0.7),
                   trainer.compute_loss(trainer.model, batch), trainer.model)

    torch.manual_seed(1)
    chosen, rejected = (torch.randn(32, requires_grad=True) for _ in range(2))
    trainer.loss_type, trainer.label_smoothing, trainer.beta = "sigmoid", 0.1, 0.3
    theirs = trainer.cpo_loss(chosen, rejected)[0].mean()
    ours = dpo.dpo_loss(chosen, rejected, torch.zeros(32), torch.zeros(32), 0.3, 0.1)
    grads = [torch.cat(torch.autograd.grad(loss, (chosen, rejected))) for loss in (ours, theirs)]
    table.add("dpo_loss, smoothing 0.1, reference 0", "CPOTrainer.cpo_loss sigmoid, smoothing 0.1",
              [(ours, theirs), grads])


def check_reward_model(table, folder):
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(0)
    margins = [0.0, 0.5, 1.0, 0.2, 2.0, 0.1]
    for with_margin in (False, True):
        model = LlamaForSequenceClassification(config(num_labels=1))
        data = preference_data(**({"margin": margins} if with_margin else {}))
        trainer = RewardTrainer(model, settings(RewardConfig, folder, max_length=64),
                                train_dataset=data, processing_class=tokenizer())
        batch = next(iter(trainer.get_train_dataloader()))
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        chosen, rejected = trainer.model(**inputs).logits.squeeze(-1).chunk(2)
        ours = reward_model.pairwise_loss(chosen, rejected, batch.get("margin", 0.0))
        compare_losses(table, f"pairwise_loss{', margins' * with_margin}",
                       f"RewardTrainer{', margins' * with_margin}", ours,
                       trainer.compute_loss(trainer.model, dict(batch)), trainer.model)


# --- groups ---------------------------------------------------------------------------------------


def group_trainer(folder, name, seen, **options):
    """A GRPO or RLOO trainer whose rewards are random and noted in ``seen``."""
    import trl
    from datasets import Dataset

    policy, reference = two_models()
    reference.save_pretrained(f"{folder}/reference")  # the trainer reads its reference from a path
    policy.config._name_or_path = f"{folder}/reference"
    rng = np.random.default_rng(3)

    def reward(completions, **_):
        seen[:] = rng.normal(size=len(completions)).round(3).tolist()
        return list(seen)

    args = settings(
        getattr(trl, f"{name}Config"), folder, num_generations=4, per_device_train_batch_size=12,
        max_completion_length=6, temperature=1.0, **options,
    )
    prompts = Dataset.from_dict({"prompt": sentences(6, seed=5)})
    trainer = getattr(trl, f"{name}Trainer")(policy, reward, args, train_dataset=prompts,
                                             processing_class=tokenizer())
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    rows = [{"prompt": prompt} for prompt in sentences(3, seed=5) for _ in range(4)]
    return trainer, trainer._generate_and_score_completions(rows)


def answer_log_probs(model, batch):
    """Of the answers' tokens, ``(B, T)``, by ours."""
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    positions = (attention.cumsum(-1) - 1).clamp_min(0)
    logits = model(tokens, attention_mask=attention, position_ids=positions).logits
    return log_probs.token_log_probs(logits, tokens)[:, batch["prompt_ids"].shape[1] - 1 :]


def check_grpo(table, folder):
    seen = []
    for scale, by_std in (("group", True), ("none", False)):
        _, batch = group_trainer(folder, "GRPO", seen, beta=0.1, scale_rewards=scale)
        ours = grpo.group_relative_advantages(torch.tensor(seen).view(3, 4), by_std, eps=1e-4)
        named = "group_relative_advantages, " + ("eps 1e-4" if by_std else "no std")
        note = "both take the sample deviation (n − 1); TRL adds 1e-4 to it, ours 1e-6 unless told"
        table.add(named, f"GRPOTrainer, scale_rewards {scale!r}",
                  [(ours.flatten(), batch["advantages"])], note * by_std)
    for loss_type, corrected, note, agree in (
        ("bnpo", False, "clipped surrogate and k3, the mean over all tokens of the batch", True),
        ("bnpo", True, "TRL's default: k3 times π/π_old, which mends k3's gradient", False),
        ("grpo", False, "the paper's: a mean over each answer first, then over answers", False),
    ):
        options = dict(beta=0.1, loss_type=loss_type, use_bias_correction_kl=corrected)
        trainer, batch = group_trainer(folder, "GRPO", seen, **options)
        batch["completion_mask"] *= torch.arange(6) < torch.arange(12)[:, None] % 6 + 1  # lengths
        with torch.no_grad():  # as if steps had been taken since: some ratios leave the clip range
            old = answer_log_probs(trainer.model, batch)
            batch["old_per_token_logps"] = old + 0.3 * torch.randn_like(old)
        new = answer_log_probs(trainer.model, batch)
        ours = grpo.grpo_loss(new, batch["old_per_token_logps"], batch["ref_per_token_logps"],
                              batch["advantages"], batch["completion_mask"], beta=0.1, clip=0.2)
        theirs = f"GRPOTrainer {loss_type}{', use_bias_correction_kl' * corrected}"
        compare_losses(table, "grpo_loss", theirs, ours,
                       trainer.compute_loss(trainer.model, batch), trainer.model, note, agree)
        if corrected:
            new = answer_log_probs(trainer.model, batch)
            data = (new, batch["old_per_token_logps"], batch["ref_per_token_logps"])
            compare_losses(table, "grpo_loss at β = 0, plus β·ratio·k3", theirs,
                           corrected_loss(*data, batch["advantages"], batch["completion_mask"]),
                           trainer.compute_loss(trainer.model, batch), trainer.model)


def corrected_loss(new, old, reference, advantages, mask, beta=0.1):
    """The clipped surrogate and β·(π/π_old)·k3: the ratio lends k3 the gradient that it lacks."""
    penalty = (new - old).exp() * kl.kl_estimates(new, reference)[2]
    surrogate = grpo.grpo_loss(new, old, reference, advantages, mask, beta=0.0, clip=0.2)
    return surrogate + beta * log_probs.masked_mean(penalty, mask)


def check_rloo(table, folder):
    seen = []
    trainer, batch = group_trainer(folder, "RLOO", seen, beta=0.2)
    new, mask = answer_log_probs(trainer.model, batch), batch["completion_mask"]
    with torch.no_grad():
        reference = answer_log_probs(trainer.ref_model, batch)
    shaped = rlhf.kl_shaped_rewards(torch.tensor(seen), new.detach(), reference, mask, 0.2).sum(-1)
    ours = grpo.rloo_advantages(shaped.view(3, 4)).flatten()
    table.add("rloo_advantages of kl_shaped_rewards", "RLOOTrainer, beta 0.2",
              [(ours, batch["advantages"])])
    loss = grpo.rloo_loss(new, batch["advantages"], mask)
    theirs = trainer.compute_loss(trainer.model, batch)
    note = "same gradient where the policy is the one that sampled; TRL's value is that of A·ratio"
    gradients = [gradient(value, trainer.model) for value in (loss, theirs)]
    table.add("rloo_loss", "RLOOTrainer", [gradients], note, names=("gradient",))


# --- functions ------------------------------------------------------------------------------------


def by_input(function, *inputs):
    """The function's value, and the gradient in the inputs of its product with random weights."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((weights * value).sum(), leaves)
    return value, torch.cat([g.flatten() for g in found])


def check_functions(table):
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    torch.manual_seed(2)
    logits, tokens = 3 * torch.randn(4, 7, 50), torch.randint(50, (4, 7))
    p, q = 2 * torch.randn(20, 9), 2 * torch.randn(20, 9)
    values = torch.randn(5, 8)
    mask = (torch.rand(5, 8) < 0.7).long()
    everything = (
        ("token_log_probs", "trl selective_log_softmax", "TRL's caller shifts, ours does",
         (lambda x: log_probs.token_log_probs(x, tokens)),
         (lambda x: selective_log_softmax(x[:, :-1], tokens[:, 1:])), (logits,)),
        ("entropy", "trl entropy_from_logits", "", kl.entropy, entropy_from_logits, (logits,)),
        ("kl_from_logits(p, q)", "torch.distributions.kl_divergence(P, Q)", "", kl.kl_from_logits,
         lambda a, b: torch.distributions.kl_divergence(
             torch.distributions.Categorical(logits=a), torch.distributions.Categorical(logits=b)),
         (p, q)),
        ("kl_from_logits(p, q)", "F.kl_div(log q, log p)", "torch takes the reference first",
         kl.kl_from_logits,
         lambda a, b: F.kl_div(b.log_softmax(-1), a.log_softmax(-1), reduction="none",
                               log_target=True).sum(-1), (p, q)),
        ("whiten", "F.layer_norm of the masked values", "the population's deviation (1/n)",
         lambda x: rlhf.whiten(x, mask)[mask != 0],
         lambda x: F.layer_norm(x[mask != 0], (int(mask.sum()),), eps=1e-8), (values,)),
        ("value_loss", "F.mse_loss", "no factor ½ in either",
         lambda x: ppo_losses.value_loss(x, q), lambda x: F.mse_loss(x, q), (p,)),
    )
    for ours, theirs, note, our, their, inputs in everything:
        pairs = zip(by_input(our, *inputs), by_input(their, *inputs), strict=True)
        table.add(ours, theirs, pairs, note)


def check_gae(table):
    """Random rewards, values and ends of episodes, four environments for 50 steps."""
    from gymnasium import spaces
    from stable_baselines3.common.buffers import RolloutBuffer

    rng = np.random.default_rng(0)
    steps, environments = 50, 4
    rewards, values = rng.normal(size=(2, steps + 1, environments)).astype(np.float32)
    ends = rng.random((steps, environments)) < 0.1  # of each step: is the next another episode's?
    space = spaces.Box(-1.0, 1.0, (1,))
    buffer = RolloutBuffer(steps, space, space, "cpu", 0.9, 0.97, environments)
    starts = np.vstack([np.ones(environments, bool), ends])
    nothing = np.zeros((environments, 1), np.float32)
    for t in range(steps):
        buffer.add(nothing, nothing, rewards[t], starts[t], torch.as_tensor(values[t]),
                   torch.zeros(environments))
    buffer.compute_returns_and_advantage(torch.as_tensor(values[steps]), ends[-1])
    columns = (rewards[:-1], values[:-1], values[1:], ends, ends)
    ours = ppo_losses.gae(*(torch.as_tensor(column) for column in columns), 0.97, 0.9)
    note = "SB3 takes every end for a termination and adds γ·V to the reward where it was not one"
    table.add("gae", "stable_baselines3 RolloutBuffer", [(ours, buffer.advantages)], note)


def quieten() -> None:
    """No progress bars, and no warnings about trainers that train nothing."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


def main() -> int:
    torch.set_num_threads(1)
    quieten()
    table = Table()
    check_functions(table)
    check_gae(table)
    with tempfile.TemporaryDirectory() as folder:
        for check in (check_dpo, check_ipo, check_cpo, check_reward_model, check_grpo, check_rloo):
            check(table, folder)
    table.print()
    packages = ("torch", "transformers", "trl", "stable-baselines3")
    record = {"python": platform.python_version(), "tolerance": TOLERANCE, "rows": table.rows,
              "versions": {name: version(name) for name in packages}}
    path = ROOT / "benchmarks" / "trl.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = sum(not row["kept"] for row in table.rows)
    print(f"{len(table.rows) - failed} of {len(table.rows)} as expected; numbers in {path.name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
