"""NEFTune: the embeddings of a training step have uniform noise of the published size; an evaluation has none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_bench import TEXTS, make_trainer

ALPHA = 5.0


def test_the_noise_of_a_step_is_uniform_up_to_alpha_by_the_root_of_length_and_width(
    tiny_model: Path, tmp_path: Path
) -> None:
    trainer = make_trainer("Instruction", tiny_model, tmp_path, neftune_noise_alpha=ALPHA, total_steps=4)
    model = trainer.model.get_base_model().model
    table = model.embed_tokens
    ids: list[torch.Tensor] = []
    noises: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    def compare(layer: torch.nn.Module, hidden: tuple[torch.Tensor, ...]) -> None:
        noises[layer.training].append((hidden[0] - table.weight[ids[-1]]).detach())

    table.register_forward_pre_hook(lambda _, given: ids.append(given[0]))
    model.layers[0].register_forward_pre_hook(compare)
    trainer.train()
    trainer.measure()
    bound = ALPHA / (len(TEXTS[0].input_ids) * table.weight.shape[1]) ** 0.5
    found = torch.cat([noise.flatten() for noise in noises[True]])
    assert len(noises[True]) == 4, "one batch a step: there are four rows"
    assert 0.99 * bound < float(found.abs().max()) <= bound * 1.001
    assert float(found.var()) == pytest.approx(bound**2 / 3, rel=0.05)
    assert noises[False]
    assert not any(bool(noise.any()) for noise in noises[False])


@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_noise_changes_what_is_learnt_and_ends_with_the_training(
    tiny_model: Path, tmp_path: Path, alpha: float | None
) -> None:
    changes: dict[str, Any] = {"neftune_noise_alpha": alpha, "total_steps": 2}
    trainer, plain = (
        make_trainer("Instruction", tiny_model, tmp_path / name, **settings)
        for name, settings in (("noisy", changes), ("plain", {"total_steps": 2}))
    )
    trainer.train()
    plain.train()
    ours, theirs = (one.model.get_base_model().model for one in (trainer, plain))
    pairs = zip(ours.layers.parameters(), theirs.layers.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs) is (alpha is None)
    ids = torch.tensor([TEXTS[0].input_ids])
    table = ours.embed_tokens.train()
    assert torch.equal(table(ids), table.weight[ids])
