from finetune_trainer.data.lengths import Lengths


def test_the_advice_is_the_99th_percentile_up_to_a_multiple_of_64() -> None:
    lengths = Lengths()
    for tokens in [*range(1, 199), 5000]:
        lengths.add(tokens)
    assert lengths.to_dict() == {"p50": 100, "p90": 180, "p99": 198, "max": 5000, "advisedMaxLength": 256}
    assert lengths.advised_max_length == 256
    assert sum(tokens <= lengths.percentile(99) for tokens in lengths.seen) >= 0.99 * len(lengths.seen)


def test_a_length_that_is_a_multiple_already_is_kept() -> None:
    lengths = Lengths()
    lengths.add(128)
    assert (lengths.percentile(99), lengths.advised_max_length, lengths.longest) == (128, 128, 128)


def test_no_rows_have_no_length() -> None:
    assert set(Lengths().to_dict().values()) == {0}
