"""Every picture of the documentation is from a recorded run, and no document names a device that no run has used."""

import re
from pathlib import Path

import picture_record
from documents import ROOT, documents

DOCS = ROOT / "docs"
PICTURE = re.compile(r"!\[([^\]]+)\]\(([^)\s]+)\)")
GPU = re.compile(
    r"\b(?:[ABHLVTP]\d{2,3}|GB\d{3}|L40S|MI\d{3}X?|(?:RTX|GTX|Quadro|Tesla|GeForce) ?\w+)\b(?! \d* ?(?:KB|MB))"
)
OF_KERNELS = "docs/gpu-drivers.md"
"""The page with the cards for which the image has kernels; it states that they were not measured."""
RESULTS = "tests/gpu/RESULTS.md"
GENERATOR = ROOT / "tests" / "integration" / "operator" / "test_pictures.py"


def pictures() -> dict[str, Path]:
    """Return each picture that a document shows, with the document."""
    return {
        (path.parent / link).resolve().relative_to(ROOT).as_posix(): path
        for path in documents()
        for _, link in PICTURE.findall(path.read_text(encoding="utf-8"))
    }


def test_every_picture_is_the_one_that_the_recorded_run_made() -> None:
    record = picture_record.read(DOCS)
    assert sorted(pictures()) == sorted(f"docs/{name}" for name in record)
    for name, entry in record.items():
        assert picture_record.digest(DOCS / name) == entry["sha256"], f"{name} was changed by hand: run make pictures"
        assert entry["command"] == "make pictures"


def test_no_other_picture_is_in_the_folder() -> None:
    files = {path.name for kind in ("png", "svg", "jpg", "gif") for path in DOCS.glob(f"*.{kind}")}
    assert files == set(picture_record.read(DOCS))


def test_the_device_of_the_run_is_a_cpu_or_one_with_results() -> None:
    results = (ROOT / RESULTS).read_text(encoding="utf-8")
    for name, entry in picture_record.read(DOCS).items():
        assert entry["device"].lower().startswith("cpu") or entry["device"] in results, name


def test_a_document_that_shows_a_picture_states_how_it_was_made() -> None:
    for path in set(pictures().values()):
        assert "`make pictures`" in path.read_text(encoding="utf-8"), path


def test_no_document_and_no_terminal_picture_names_a_gpu_that_no_run_has_used() -> None:
    results = (ROOT / RESULTS).read_text(encoding="utf-8")
    texts = [*documents(), *DOCS.glob("*.svg")]
    named = {
        f"{path.relative_to(ROOT)}: {found}"
        for path in texts
        if path.relative_to(ROOT).as_posix() not in {OF_KERNELS, RESULTS}
        for found in GPU.findall(re.sub(r"<style>.*?</style>|#[0-9a-fA-F]{6}", "", path.read_text("utf-8"), flags=re.S))
        if found not in results
    }
    assert named == set()


def test_the_page_of_cards_states_that_they_were_not_measured() -> None:
    text = (ROOT / OF_KERNELS).read_text(encoding="utf-8")
    assert GPU.search(text)
    assert "it was not measured on each card" in text


def test_pictures_are_taken_without_the_invented_run_of_the_tests() -> None:
    assert "report_record" not in GENERATOR.read_text(encoding="utf-8")
    assert not GPU.search((ROOT / "tests" / "fixtures" / "report_record.py").read_text(encoding="utf-8"))


def test_pictures_are_small_and_load_nothing() -> None:
    for name in picture_record.read(DOCS):
        path = DOCS / name
        assert path.stat().st_size < 150_000, name
        if path.suffix == ".svg":
            assert re.findall(r"https?://(?!www\.w3\.org|www\.textualize\.io)[^\s\"']+", path.read_text("utf-8")) == []
