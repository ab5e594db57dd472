"""CartPole-v1 until it is solved: wall time on one thread, a seed a round.

Solved: the greedy mean over 20 episodes reaches 475 at three checks in a row; the time is that of
the first of them. Checks are due every 2,000 environment steps and are the same code on all sides
(ours, which plays the 20 episodes at once; Stable-Baselines3's own would take longer); their time
counts. Stable-Baselines3 runs with its defaults, and tuned: what RL Zoo recommends for CartPole-v1.
The lectures' REINFORCE learns from one episode at a time.

Leaves out: CleanRL, whose releases of the last years do not install on Python 3.11 or later.
"""

import time

from common import Aim, Clock, Variant, now_mib, run_variant

TITLE = "CartPole-v1, seconds to solve, one thread"
THREADS = 1
CHECK_EVERY, EPISODES, SOLVED, MAX_STEPS = 2_000, 20, 475.0, 80_000


def ours(quick, turn, name, method) -> dict:
    from rlhf_minimal import policy_gradient, ppo

    train = {"PPO": ppo.train_ppo, "REINFORCE": policy_gradient.train_reinforce}[method]
    before, clock = now_mib(models=False), Clock(0)
    train(seed=turn, max_steps=4_000 if quick else MAX_STEPS, evaluate_every=CHECK_EVERY,
          target_return=SOLVED, history=clock, show_progress=False)
    checks, total = [], 0.0
    for row, seconds in zip(clock.rows, clock.seconds, strict=True):
        total += seconds
        if "greedy_return" in row:
            checks.append((row["steps"], total, row["greedy_return"]))
    return result(checks, before, clock.rows[-1]["steps"], total)


class Checks:
    """The same greedy check for those who do not make it themselves."""

    def __init__(self, logits, seed):
        self.logits, self.seed, self.next, self.made = logits, seed, CHECK_EVERY, []
        self.started = time.perf_counter()

    def solved_after(self, steps) -> bool:
        """Check if it is time to; whether the last three checks were good."""
        from rlhf_minimal.environments import evaluate_policy

        if steps >= self.next:
            self.next = steps + CHECK_EVERY
            mean = evaluate_policy(self.logits, episodes=EPISODES, seed=self.seed + steps).mean()
            self.made.append((steps, time.perf_counter() - self.started, mean.item()))
        return first_solved(self.made) is not None


def stable_baselines(quick, turn, name, **options) -> dict:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    before = now_mib(models=False)
    environments = options.pop("environments")
    if options:
        options |= dict(learning_rate=lambda left: left * 0.001, clip_range=lambda left: left * 0.2)
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", environments, seed=turn), seed=turn,
                device="cpu", **options)

    def logits(observations):
        return model.policy.get_distribution(observations).distribution.logits

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return not checks.solved_after(self.num_timesteps)

    checks = Checks(logits, turn)
    model.learn(4_000 if quick else MAX_STEPS, callback=Watch())
    total = time.perf_counter() - checks.started
    return result(checks.made, before, model.num_timesteps, total)


def one_episode_reinforce(quick, turn, name) -> dict:
    """As lectures write it: one environment, one episode, one step of Adam."""
    import gymnasium
    import torch

    from rlhf_minimal.policy_gradient import mlp

    before = now_mib(models=False)
    torch.manual_seed(turn)
    environment, policy = gymnasium.make("CartPole-v1"), mlp([4, 64, 64, 2])
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    checks, steps = Checks(policy, turn), 0
    observation, _ = environment.reset(seed=turn)
    while steps < (4_000 if quick else MAX_STEPS) and not checks.solved_after(steps):
        log_probs, rewards, done = [], [], False
        while not done:
            choice = torch.distributions.Categorical(logits=policy(torch.as_tensor(observation)))
            action = choice.sample()
            observation, reward, ended, cut, _ = environment.step(action.item())
            log_probs.append(choice.log_prob(action))
            rewards.append(reward)
            done = ended or cut
        steps += len(rewards)
        returns, total = [], 0.0
        for reward in reversed(rewards):
            total = reward + 0.99 * total
            returns.append(total)
        weights = torch.tensor(returns[::-1])
        weights = (weights - weights.mean()) / (weights.std(correction=0) + 1e-8)
        optimizer.zero_grad()
        (-(torch.stack(log_probs) * weights).mean()).backward()
        optimizer.step()
        observation, _ = environment.reset()
    return result(checks.made, before, steps, time.perf_counter() - checks.started)


def first_solved(checks):
    """The first of three checks in a row that are all good, or None."""
    for i in range(len(checks) - 2):
        if all(mean >= SOLVED for *_, mean in checks[i:i + 3]):
            return checks[i]
    return None


def result(checks, before, steps, total) -> dict:
    found = first_solved(checks)
    return {
        "seconds_to_solve": found and found[1], "steps_to_solve": found and found[0],
        "unit": "s", "after_imports_mib": before, "steps_per_second": steps / total,
        "checks": [[steps, round(at, 3), mean] for steps, at, mean in checks],
    }


VARIANTS = {
    "SB3 PPO, its defaults": Variant(stable_baselines, dict(environments=1)),
    "SB3 PPO tuned": Variant(stable_baselines, dict(
        environments=8, n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8,
        ent_coef=0.0)),
    "ours, PPO": Variant(ours, dict(method="PPO")),
    "one-episode REINFORCE": Variant(one_episode_reinforce),
    "ours, REINFORCE": Variant(ours, dict(method="REINFORCE")),
}
ROUNDS = 5
AIMS = [
    Aim("ours, PPO", "SB3 PPO tuned", 0.35, "seconds"),
    Aim("ours, REINFORCE", "one-episode REINFORCE", 0.35, "seconds"),
]

if __name__ == "__main__":
    run_variant(VARIANTS)
