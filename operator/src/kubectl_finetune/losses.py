"""The figures of a training as lines: losses, rewards, and how they compare with the model before it."""

from finetune_api.status import Metrics
from kubectl_finetune.figures import number
from kubectl_finetune.job import Job


def loss_pairs(job: Job) -> list[tuple[str, str]]:
    """Names and figures of what was measured."""
    metrics, resolved = job.status.metrics, job.status.resolved
    if metrics is None:
        return []
    best = number(metrics.best_eval_loss)
    if metrics.best_eval_loss is not None and metrics.best_step is not None:
        best += f" at step {metrics.best_step}"
    rate = metrics.learning_rate if metrics.learning_rate is not None else resolved and resolved.learning_rate
    return [
        ("Before training", number(metrics.baseline_eval_loss)),
        ("Evaluation loss", number(metrics.eval_loss) + change(metrics)),
        ("Best", best),
        ("Training loss", number(metrics.train_loss)),
        ("Reward", number(metrics.eval_reward if metrics.eval_reward is not None else metrics.reward)),
        ("Reward before", number(metrics.baseline_eval_reward)),
        ("Reward margin", number(metrics.reward_margin)),
        ("Reward accuracy", number(metrics.reward_accuracy)),
        ("KL", number(metrics.kl)),
        ("Learning rate", number(rate or None)),
        ("Tokens/s", number(metrics.tokens_per_second)),
    ]


def change(metrics: Metrics) -> str:
    """How the held-out loss compares with that of the untouched model."""
    if metrics.eval_loss is None or not metrics.baseline_eval_loss:
        return ""
    percent = 100 * (metrics.eval_loss / metrics.baseline_eval_loss - 1)
    return f" ({percent:+.1f} % against the model before training)"
