from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.data.rows import Message
from finetune_trainer.evaluation.run_record import Licence
from finetune_trainer.models.files.model_card import describe_base, parse_licence, read_licence
from finetune_trainer.tokenization.labeler import Labeler


def test_the_licence_is_the_one_of_the_base_models_own_card(world: Any) -> None:
    (world.bucket / "model" / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model\n")
    assert read_licence("s3://bucket/model", world.storage) == Licence(("apache-2.0",))


def test_without_a_card_the_licence_is_unknown(world: Any) -> None:
    assert read_licence("s3://bucket/model", world.storage) is None


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (
            "---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE\n---\n",
            Licence(("other",), "llama3.2", "LICENSE"),
        ),
        ("\ufeff---\r\nlicense:\r\n- mit\r\n- apache-2.0\r\n---\r\n", Licence(("mit", "apache-2.0"))),
        ("---\ntags: [a, {b\nlicense: mit\nlanguage:\n- en\n---\n", Licence(("mit",))),
        ("---\nlicense: 5\n---\n", None),
        ("---\nlicense: [[x]]\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.system [id]\n---\n", None),
        ("---\nlicense: {a: b\n---\n", None),
        ("---\nlicense: 2020-99-99\n---\n", None),
        ("---\n- a\n---\n", None),
        (f"---\nlicense: {'x' * 301}\n---\n", None),
        ('---\nlicense: "a\\eb"\n---\n', None),
        ("---\nlicense: mit\n", None),
        ("# no front matter\nlicense: mit\n", None),
        (f"---\nlicense: {'[' * 5000}\n---\n", None),
        ("", None),
    ],
)
def test_only_what_a_card_plainly_states_is_believed(card: str, licence: Licence | None) -> None:
    assert parse_licence(card) == licence


def test_template_context_and_prompts_are_described(model_folder: Path) -> None:
    facts = describe_base(model_folder, Labeler(model_folder), None, [[Message(role="user", content="hello")]])
    assert (facts.is_template_made, facts.context_length) == (False, None)
    assert len(facts.prompt_tokens) == 1
    (model_folder / "config.json").write_text('{"text_config": {"max_position_embeddings": 512}}')
    (model_folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    facts = describe_base(model_folder, Labeler(model_folder), None, [])
    assert (facts.is_template_made, facts.context_length) == (True, 512)
