"""Training of tokenizers on text: SentencePiece models and word vocabularies.

The files that `text.load_tokenizer` reads; id 0 is padding, id 1 the unknown word.
"""

import collections
import dataclasses
import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from mmssl import files as files_lib
from mmssl.data import sources, text
from mmssl.errors import UserError

Kind = Literal["sentencepiece", "word"]

SUFFIXES = {"sentencepiece": ".model", "word": ".txt"}
"""Kind to file suffix, by which `text.load_tokenizer` knows the kind."""


@dataclasses.dataclass(frozen=True)
class TokenizerReport:
    """What was trained.

    Attributes:
      path: the file written.
      kind: "sentencepiece" or "word".
      vocab_size: ids in it, padding and unknown included.
      texts: number of texts read.
    """

    path: pathlib.Path
    kind: Kind
    vocab_size: int
    texts: int


def dataset_texts(path: str | os.PathLike[str], *, split: str = "train") -> list[str]:
    """All texts of a split, in its stored order: segments, or else the words joined.

    Raises:
      UserError: no dataset there, or no such split in it.
    """
    texts = []
    source = sources.open_dataset(path, split)
    for record in (source[i] for i in range(len(source))):
        words = " ".join(word.word for word in record.words)
        texts += [s.text for s in record.segments] or ([words] if words else [])
    return texts


def _file_texts(paths: Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    for path in paths:
        try:
            with open(path, encoding="utf-8") as f:
                yield from (line.strip() for line in f if line.strip())
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(
                f"{path}: expected a readable UTF-8 text file, one text a line: {e}"
            ) from e


def _sentencepiece(texts: Iterable[str], vocab_size: int) -> tuple[bytes, int]:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            normalization_rule_name="nmt_nfkc_cf",
            max_sentence_length=2**16,  # bytes; longer texts would be left out silently
            num_threads=1,  # the order of summation decides near-ties
            minloglevel=2,
        )
    except (RuntimeError, OSError) as e:
        needed = re.search(r"required_chars\. \d+ vs (\d+)", str(e))
        raise UserError(
            f"vocabulary size {vocab_size}: SentencePiece cannot train on this text: "
            + (
                f"its characters alone need {needed[1]}; ask for more than that"
                if needed
                else f"{str(e).splitlines()[0]}; give it more text, or collect a word "
                "vocabulary (kind word)"
            )
        ) from e
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return model.getvalue(), processor.vocab_size()


def _vocabulary(texts: Iterable[str], vocab_size: int) -> tuple[bytes, int]:
    counts = collections.Counter(word for t in texts for word in text.split_words(t))
    # Ties in alphabetical order: the same text in any order gives the same file.
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    words = ranked[: vocab_size - 2]
    return "".join(word + "\n" for word in words).encode(), len(words) + 2


def train_tokenizer(
    *,
    dataset: str | os.PathLike[str] | None = None,
    files: Sequence[str | os.PathLike[str]] = (),
    out: str | os.PathLike[str] | None = None,
    kind: Kind = "sentencepiece",
    vocab_size: int = 1024,
) -> TokenizerReport:
    """Trains a tokenizer and writes its file; the same text gives the same bytes.

    Args:
      dataset: a dataset folder, whose split `train` is read; or
      files: UTF-8 text files, one text a line.
      out: the file to write; default `tokenizer.model` in the dataset's folder, where
        training looks for it (`tokenizer.txt` for words). An existing file is replaced.
      kind: "sentencepiece" (unigram, case folded, NFKC) or "word" (one lower-case
        word a line, most frequent first; ids start at 2).
      vocab_size: upper bound on the number of ids, padding and unknown included.

    Raises:
      UserError: no text, too little text for SentencePiece, a bad size, or `out` is not
        writable.
      ValueError: not exactly one of dataset and files, or an unknown kind.
    """
    if (dataset is None) == (not files):
        raise ValueError("give exactly one of dataset and files")
    if kind not in SUFFIXES:
        raise ValueError(f"kind must be 'sentencepiece' or 'word', found {kind!r}")
    if vocab_size < 8:
        raise UserError(f"vocabulary size: expected at least 8, found {vocab_size}")
    if out is None:
        if dataset is None:
            raise ValueError("give out, where to write")
        out = pathlib.Path(dataset) / f"tokenizer{SUFFIXES[kind]}"
    out = pathlib.Path(out)
    if out.suffix != SUFFIXES[kind]:
        raise UserError(
            f"{out}: a {kind} tokenizer's file must end in {SUFFIXES[kind]}, found "
            f"{out.suffix or 'no suffix'}; rename it"
        )
    texts = list(_file_texts(files)) if dataset is None else dataset_texts(dataset)
    if not texts:
        source = str(dataset) if files == () else ", ".join(str(f) for f in files)
        raise UserError(
            f"{source}: no text to train a tokenizer on; build the dataset with texts, "
            "or train on text files"
        )
    train = _sentencepiece if kind == "sentencepiece" else _vocabulary
    content, size = train(texts, vocab_size)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files_lib.write(out, content)
    except OSError as e:
        raise UserError(f"{out}: could not be written: {e.strerror or e}") from e
    return TokenizerReport(out, kind, size, len(texts))
