"""Tokenizers: special ids, determinism, clear errors."""

import pytest

from mmssl.data import text, tokenizer
from mmssl.data.tokenizer import train_tokenizer
from mmssl.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:label:DeprecationWarning")

LINES = [
    "A red circle moves left",
    "the blue square rises again",
    "it's a Größe test, isn’t it?",
    "赤い丸が左に動く",
] * 5


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(LINES) + "\n\n")
    return path


@pytest.mark.parametrize("kind", ["sentencepiece", "word"])
def test_file_round_trip(corpus, tmp_path, kind):
    out = tmp_path / f"t{tokenizer.SUFFIXES[kind]}"
    report = train_tokenizer(files=[corpus], out=out, kind=kind, vocab_size=90)
    assert (report.path, report.kind, report.texts) == (out, kind, len(LINES))
    loaded = text.load_tokenizer(out)
    assert loaded.vocab_size == report.vocab_size <= 90
    assert loaded.pad_id == 0
    for line in LINES:
        ids = loaded.encode(line)
        assert ids
        assert min(ids) > 1  # neither padding nor unknown
        assert max(ids) < loaded.vocab_size
    assert 1 in loaded.encode("Ω unknown ☂")
    assert loaded.encode("RED CIRCLE") == loaded.encode("red circle")


@pytest.mark.parametrize("kind", ["sentencepiece", "word"])
def test_same_text_same_bytes(corpus, tmp_path, kind):
    paths = [tmp_path / f"{n}{tokenizer.SUFFIXES[kind]}" for n in "ab"]
    for path in paths:
        train_tokenizer(files=[corpus], out=path, kind=kind, vocab_size=80)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_words_by_frequency(corpus, tmp_path):
    out = tmp_path / "w.txt"
    corpus.write_text("b c a\nb c\nb d\n")
    report = train_tokenizer(files=[corpus], out=out, kind="word", vocab_size=8)
    assert out.read_text() == "b\nc\na\nd\n"  # ties by the alphabet
    assert report.vocab_size == 6
    corpus.write_text("b c a e f g h i\nb c\nb d\n")
    report = train_tokenizer(files=[corpus], out=out, kind="word", vocab_size=8)
    assert out.read_text() == "b\nc\na\nd\ne\nf\n"
    assert report.vocab_size == 8


def test_a_dataset_gets_its_tokenizer_beside_it(mixed_dataset):
    out, report = mixed_dataset
    try:
        done = train_tokenizer(dataset=out, vocab_size=64)
        assert done.path == out / "tokenizer.model"
        assert done.texts >= report.splits["train"] - 2  # a text a row at the least
        assert text.load_tokenizer(done.path).vocab_size == done.vocab_size
        [extra] = [f for f in out.iterdir() if f.name.startswith((".", "tokenizer"))]
        assert extra == done.path
    finally:
        (out / "tokenizer.model").unlink(missing_ok=True)


def test_dataset_texts(mixed_dataset):
    texts = []
    for split in ("train", "test"):
        texts += tokenizer.dataset_texts(mixed_dataset[0], split=split)
    assert "only words" in texts
    assert "only" not in texts  # words are used where there are no segments


def test_errors(corpus, tmp_path, mixed_dataset):
    out = tmp_path / "t.model"
    with pytest.raises(UserError, match="its characters alone need"):
        train_tokenizer(files=[corpus], out=out, vocab_size=8)
    with pytest.raises(UserError, match="expected at least 8, found 3"):
        train_tokenizer(files=[corpus], out=out, vocab_size=3)
    with pytest.raises(UserError, match=r"must end in \.txt, found \.model"):
        train_tokenizer(files=[corpus], out=out, kind="word")
    with pytest.raises(UserError, match="expected a readable UTF-8 text file"):
        train_tokenizer(files=[tmp_path / "no.txt"], out=out)
    corpus.write_text("\n \n")
    with pytest.raises(UserError, match=r"corpus.txt: no text to train a tokenizer on"):
        train_tokenizer(files=[corpus], out=out)
    corpus.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="UTF-8"):
        train_tokenizer(files=[corpus], out=out)
    with pytest.raises(UserError, match="could not be written"):
        train_tokenizer(dataset=mixed_dataset[0], out=corpus / "x" / "t.model")
    with pytest.raises(ValueError, match="exactly one of dataset and files"):
        train_tokenizer(out=out)
    with pytest.raises(ValueError, match="kind must be"):
        train_tokenizer(files=[corpus], out=out, kind="bpe")  # pyright: ignore
    assert not out.exists()
