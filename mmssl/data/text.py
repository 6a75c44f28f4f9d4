"""Text to token ids: tokenizers from files, and the texts that go with a window."""

import collections
import functools
import math
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int32

from mmssl.data import records
from mmssl.data.records import Segment, Word
from mmssl.errors import UserError

PAD, UNK = 0, 1

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


class Tokenizer(Protocol):
    """Text to ids; id 0 is padding and never comes out of `encode`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_id(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def pieces(self, ids: Iterable[int]) -> list[str]: ...


def split_words(text: str) -> list[str]:
    """Lower-case words of any script, without punctuation: the word vocabulary's."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


class WordTokenizer:
    """One id per word: 0 padding, 1 unknown, then the file's lines from 2.

    Args:
      path: a UTF-8 file with one lower-case word a line, most frequent first.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = records.folder(path)
        self._ids  # noqa: B018  a bad file is an error now, not in the first batch

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        lines = _read(self.path).decode("utf-8", errors="replace").splitlines()
        words = [line.strip() for line in lines]
        counts = collections.Counter(words)
        repeated = [word for word, count in counts.items() if count > 1]
        if not words or "" in counts or repeated:
            found = f"{repeated[:3]} repeated" if repeated else "an empty line"
            raise UserError(
                f"{self.path}: expected one different word a line, found {found}; "
                "make it with `mmssl data tokenizer`"
            )
        return {word: i for i, word in enumerate(words, start=UNK + 1)}

    @property
    def vocab_size(self) -> int:
        """Ids in use, padding and unknown included."""
        return len(self._ids) + 2

    @property
    def pad_id(self) -> int:
        return PAD

    def encode(self, text: str) -> list[int]:
        """Ids of the words; a word outside the vocabulary is 1."""
        return [self._ids.get(word, UNK) for word in split_words(text)]

    @functools.cached_property
    def _words(self) -> dict[int, str]:
        return {i: word for word, i in self._ids.items()} | {UNK: "<unk>"}

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The word of each id, padding left out."""
        return [self._words[int(i)] for i in ids if int(i) != PAD]

    def decode(self, ids: Iterable[int]) -> str:
        """The words of the ids, padding left out."""
        return " ".join(self.pieces(ids))


class SentencePieceTokenizer:
    """Subword ids of a SentencePiece model whose padding id is 0.

    Args:
      path: the `.model` file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = records.folder(path)
        if self._processor.pad_id() != PAD:
            raise UserError(
                f"{self.path}: padding must have id 0, found "
                f"{self._processor.pad_id()}; train it with `mmssl data tokenizer`, or "
                "with pad_id=0, unk_id=1"
            )

    @functools.cached_property
    def _processor(self) -> Any:
        import sentencepiece

        data = _read(self.path)
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise UserError(
                f"{self.path}: not a SentencePiece model: {error}; make one with "
                "`mmssl data tokenizer`"
            ) from error

    @property
    def vocab_size(self) -> int:
        return int(self._processor.get_piece_size())

    @property
    def pad_id(self) -> int:
        return PAD

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces, without begin and end marks."""
        return list(self._processor.encode(text))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of each id, padding left out; a word begins with "▁"."""
        return [self._processor.id_to_piece(int(i)) for i in ids if int(i) != PAD]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, padding left out."""
        return str(self._processor.decode([int(i) for i in ids if int(i) != PAD]))


TOKENIZERS = {".model": SentencePieceTokenizer, ".txt": WordTokenizer}
"""File suffix to tokenizer."""


def load_tokenizer(
    path: str | os.PathLike[str],
) -> SentencePieceTokenizer | WordTokenizer:
    """The tokenizer in file `path`, by its suffix: `.model` or `.txt`.

    Raises:
      UserError: no such file, an unknown suffix, or not what the suffix says.
    """
    kind = TOKENIZERS.get(pathlib.PurePath(path).suffix)
    if kind is None:
        raise UserError(
            f"{path}: a tokenizer file ends in .model (SentencePiece) or .txt (one "
            "word a line); make one with `mmssl data tokenizer`"
        )
    return kind(path)


def _read(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: no readable tokenizer there ({error.strerror}); make one with "
            "`mmssl data tokenizer`, or set data.tokenizer to its path"
        ) from error


def nearest_segments(
    segments: Sequence[Segment], *, centre: float, count: int
) -> list[str]:
    """The texts nearest in time to `centre` seconds, nearest first (VATT B4).

    A text without times belongs to the whole clip: its distance is 0. Ties keep the
    record's order.
    """

    def distance(segment: Segment) -> float:
        if math.isnan(segment.start):
            return 0.0
        return abs((segment.start + segment.end) / 2 - centre)

    return [segment.text for segment in sorted(segments, key=distance)[:count]]


def words_within(words: Sequence[Word], *, start: float, end: float) -> list[str]:
    """One text of the words whose middle is in [start, end); none: no text."""
    heard = [w.word for w in words if start <= (w.start + w.end) / 2 < end]
    return [" ".join(heard)] if heard else []


def encode_candidates(
    tokenizer: Tokenizer, texts: Sequence[str], *, count: int, length: int
) -> Int32[np.ndarray, "n t"]:
    """Ids of up to `count` texts, each cut or padded with 0 to `length`.

    Texts that give no token at all are left out.
    """
    out = np.zeros((count, length), np.int32)
    rows = [ids for ids in map(tokenizer.encode, texts) if ids]
    for row, ids in zip(out, rows[:count], strict=False):
        kept = ids[:length]
        row[: len(kept)] = kept
    return out
