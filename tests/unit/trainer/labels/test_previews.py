from finetune_trainer.previews import abridge


def test_a_long_piece_shows_how_it_begins_and_ends() -> None:
    prompt = "Begin " + "x" * 1000 + " end?"
    (shown, is_trained), answer = abridge([(prompt, False), ("Short.", True)])
    assert shown.startswith("Begin ")
    assert shown.endswith(" end?")
    assert "[…711 characters…]" in shown
    assert not is_trained
    assert answer == ("Short.", True)
