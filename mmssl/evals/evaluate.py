"""The whole evaluation of a run: trained, beside random initialisation and chance.

Protocols are fixed here. Whoever changes what one computes raises its version: results
of different versions are not compared.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmssl.errors import UserError, nearest
from mmssl.evals import classify, low_rank, probe, retrieval, zero_shot
from mmssl.evals.classify import Arm, Arms, Outcome, SkippedError
from mmssl.evals.knn import knn

Found = tuple[dict[str, Any], dict[str, Outcome]]
"""A section of the result, and outcomes by case."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What protocols may be told; the result says it.

    Attributes:
      knn_k: neighbours.
      knn_temperature: of their votes.
      prompts: templates of zero-shot classification, `{}` = the class.
      shares: of the labels, for label-fraction curves.
      seeds: of those curves.
      epochs: of the low-rank head.
    """

    knn_k: int = 20
    knn_temperature: float = 0.07
    prompts: tuple[str, ...] = ("{}",)
    shares: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = low_rank.EPOCHS

    def __post_init__(self) -> None:
        if self.knn_k < 1:
            raise ValueError(f"knn_k: must be at least 1, found {self.knn_k}")
        for template in self.prompts:
            if template.count("{}") != 1 or template.count("{") != 1:
                raise ValueError(
                    f"prompts: expected templates with one {{}}, found {template!r}"
                )
        if not self.prompts:
            raise ValueError("prompts: expected at least one, like '{}'")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to judge embeddings.

    Attributes:
      version: of what it computes.
      run: arms and options -> what it found.
      facts: options that it reads, and what else is fixed.
      learns: whether it needs the embeddings of a training split.
      prompts: whether it needs those of class prompts.
    """

    version: int
    run: Callable[[Arms, Options], Found]
    facts: Callable[[Options], dict[str, Any]]
    learns: bool = True
    prompts: bool = False


def _retrieval(arms: Arms, _: Options) -> Found:
    found = {name: retrieval.retrieval(arm.test) for name, arm in arms.items()}
    cells, outcomes = {}, {}
    for pair, ours in found["trained"].items():
        cells[pair] = {
            **{name: of[pair].scores for name, of in found.items()},
            "chance": ours.chance,
            "n": len(ours.rank),
            "space": ours.pair.space,
        }
        outcomes[pair] = Outcome(ours.pair.clips, ours.rank)
    return cells, outcomes


def _judged(
    cases: Iterable[tuple[str, str]],
    judge: Callable[[str, str], tuple[dict[str, Any], Outcome | None]],
) -> Found:
    """modality -> column -> what was found, or why there is nothing to judge."""
    cells: dict[str, Any] = {}
    outcomes: dict[str, Outcome] = {}
    for m, column in cases:
        try:
            cell, outcome = judge(m, column)
        except SkippedError as reason:
            cell, outcome = {"skipped": str(reason)}, None
        cells.setdefault(m, {})[column] = cell
        if outcome is not None:
            outcomes[f"{m} {column}"] = outcome
    return cells, outcomes


def _each(method: Callable[[Options], classify.Method], choice: str = "") -> Any:
    """One classifier for every modality and label column."""

    def run(arms: Arms, options: Options) -> Found:
        def judge(m: str, column: str) -> tuple[dict[str, Any], Outcome]:
            return classify.single(arms, m, column, method(options), choice)

        return _judged(classify.columns(arms["trained"]), judge)

    return run


def _by_knn(options: Options) -> classify.Method:
    def method(x: Any, y: Any, test: Any) -> Any:
        k = min(options.knn_k, len(x))
        return knn(x, y, test, k=k, temperature=options.knn_temperature), k

    return method


def _by_probe(kind: str) -> Callable[[Options], classify.Method]:
    return lambda _: lambda x, y, test: probe.probe(x, y, test, kind=kind)


def _by_low_rank(options: Options) -> classify.Method:
    return lambda x, y, test: (
        low_rank.low_rank(x, y, test, epochs=options.epochs),
        None,
    )


def _fractions(arms: Arms, options: Options) -> Found:
    def judge(m: str, column: str) -> tuple[dict[str, Any], None]:
        method = _by_probe("logistic")(options)
        shares, seeds = options.shares, options.seeds
        found = classify.fractions(arms, m, column, method, shares=shares, seeds=seeds)
        return found, None

    return _judged(classify.columns(arms["trained"]), judge)


def _multilabel(arms: Arms, _: Options) -> Found:
    cells: dict[str, Any] = {}
    one = arms["trained"]
    assert one.train is not None
    for m in sorted(set(one.test.pooled) & set(one.train.pooled)):
        try:
            cells[m] = classify.multi(arms, m)
        except SkippedError as reason:
            cells[m] = {"skipped": str(reason)}
    return cells, {}


def _zero_shot(arms: Arms, _: Options) -> Found:
    modalities = sorted({*arms["trained"].test.pooled} - {"text"})
    cases = itertools.product(modalities, sorted(arms["trained"].prompts))
    return _judged(cases, lambda m, column: zero_shot.zero_shot(arms, m, column))


def _of_probe(_: Options) -> dict[str, Any]:
    return {"grid": list(probe.GRID), "seed": 0}


PROTOCOLS: dict[str, Protocol] = {
    "retrieval": Protocol(1, _retrieval, lambda _: {}, learns=False),
    "zero_shot": Protocol(
        1, _zero_shot, lambda o: {"prompts": [*o.prompts]}, learns=False, prompts=True
    ),
    "probe": Protocol(1, _each(_by_probe("logistic"), "C"), _of_probe),
    "knn": Protocol(
        1,
        _each(_by_knn, "k"),
        lambda o: {"k": o.knn_k, "temperature": o.knn_temperature},
    ),
    "svm": Protocol(1, _each(_by_probe("svm"), "C"), _of_probe),
    "low_rank": Protocol(
        1, _each(_by_low_rank), lambda o: {"epochs": o.epochs, "seed": 0}
    ),
    "fractions": Protocol(
        1,
        _fractions,
        lambda o: {"shares": [*o.shares], "seeds": [*o.seeds], **_of_probe(o)},
    ),
    "multilabel": Protocol(1, _multilabel, _of_probe),
}
"""By name, in the order of the tables."""

DEFAULT = ("retrieval", "zero_shot", "probe", "knn")
"""What `mmssl eval` runs where it is told nothing: what does not take long."""


def check_protocols(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The names, in the order of `PROTOCOLS`.

    Raises:
      UserError: there is no such protocol, or none is named.
    """
    wanted = set(names)
    for name in wanted:
        if name not in PROTOCOLS:
            raise UserError(
                f"{where}: unknown protocol {name!r}{nearest(name, PROTOCOLS)}; "
                f"known: {', '.join(PROTOCOLS)}"
            )
    if not wanted:
        raise UserError(f"{where}: name at least one of {', '.join(PROTOCOLS)}")
    return tuple(name for name in PROTOCOLS if name in wanted)


def possible(
    names: Iterable[str] | None, *, data: str, splits: Iterable[str], train_split: str
) -> tuple[tuple[str, ...], dict[str, dict[str, str]]]:
    """The protocols that a dataset allows, and sections of the others.

    Args:
      names: of protocols; None = those of `DEFAULT` that need no split it lacks.
      data: the dataset.
      splits: that it has.
      train_split: that classifiers learn from; a slice of one, too.

    Raises:
      UserError: no such protocol; a named one learns from a split that is not there.
    """
    wanted = check_protocols(DEFAULT if names is None else names, "--protocols")
    if train_split.split("[")[0] in splits:
        return wanted, {}
    learning = [name for name in wanted if PROTOCOLS[name].learns]
    others = [name for name, protocol in PROTOCOLS.items() if not protocol.learns]
    if learning and names is not None:
        raise UserError(
            f"--protocols {','.join(learning)} learns from the split {train_split!r}, "
            f"and {data} has {sorted(splits)}: name {' or '.join(others)} alone, or "
            "give --data a dataset with that split"
        )
    skipped = {name: {"skipped": f"no split {train_split!r}"} for name in learning}
    return tuple(name for name in wanted if name not in skipped), skipped


def told(names: Iterable[str], options: Options) -> dict[str, dict[str, Any]]:
    """Name -> {"version", what it is told} of protocols."""
    return {
        name: {"version": PROTOCOLS[name].version, **PROTOCOLS[name].facts(options)}
        for name in names
    }


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
      sections: JSON-able: protocol -> its cells, nested by case. A cell is {"trained":
        {metric: value}, "random": {...}, "chance": {...}, "n": clips, ...} or
        {"skipped": reason}.
      protocols: name -> {"version", what it was told}.
      outcomes: `probe/video digit` -> what became of each clip; for `compare`.
    """

    sections: dict[str, Any]
    protocols: dict[str, dict[str, Any]]
    outcomes: dict[str, Outcome]


def evaluate(
    trained: Arm,
    random: Arm | None = None,
    *,
    protocols: Iterable[str] = DEFAULT,
    options: Options | None = None,
) -> Evaluation:
    """Runs protocols on embeddings.

    Args:
      trained: of the checkpoint.
      random: of the same model at its initialisation, on the same clips; None = no such
        numbers.
      protocols: names of `PROTOCOLS`.
      options: of the protocols.

    Raises:
      ValueError: the two arms hold different clips.
    """
    arms = {"trained": trained} | ({"random": random} if random else {})
    for name in ("train", "test"):
        ids = [part.ids if (part := getattr(a, name)) else () for a in arms.values()]
        if ids[0] != ids[-1]:
            raise ValueError(f"evaluate: the arms differ in the clips of {name!r}")
    options = options or Options()
    wanted = check_protocols(protocols, "evaluate")
    found = Evaluation({}, told(wanted, options), {})
    for name in wanted:
        protocol = PROTOCOLS[name]
        cells, outcomes = protocol.run(arms, options)
        found.sections[name] = cells
        found.outcomes.update({f"{name}/{case}": o for case, o in outcomes.items()})
    return found


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of the result, for tables. Shares lie in [0, 1]; NaN = not there."""

    section: str
    case: str
    metric: str
    trained: float
    random: float
    chance: float
    n: int


def table_rows(result: Mapping[str, Any]) -> list[Row]:
    """The numbers of an evaluation's sections as rows; without skipped cells."""
    return [
        Row(
            section=section,
            case=case,
            metric=metric,
            trained=value,
            random=cell.get("random", {}).get(metric, math.nan),
            chance=cell["chance"].get(metric, math.nan),
            n=cell["n"],
        )
        for section in PROTOCOLS
        for case, cell in _cells(result.get(section, {}))
        for metric, value in cell["trained"].items()
    ]


def metrics(sections: Mapping[str, Any]) -> dict[str, float]:
    """The trained arm's numbers for a log: `eval/retrieval/video-audio/R1`.

    With the clips that were judged, `eval/retrieval/video-audio/n`.
    Of letters, digits, `_`, `-`, `.` and `/` alone, which every tracker takes.
    """
    names = {}
    for row in table_rows(sections):
        names[f"eval/{row.section}/{row.case}/{row.metric}"] = row.trained
        names[f"eval/{row.section}/{row.case}/n"] = float(row.n)
    plain = {"->": "-", " ": "/", "@": "", "%": "pct"}
    for old, new in plain.items():
        names = {name.replace(old, new): value for name, value in names.items()}
    return {re.sub(r"[^\w./-]", "_", name): value for name, value in names.items()}


def summary(sections: Mapping[str, Any]) -> str:
    """A line: the mean over the cases of each section's first metric."""
    rows, said = table_rows(sections), []
    for section in dict.fromkeys(row.section for row in rows):
        mine = [row for row in rows if row.section == section]
        found = [row.trained for row in mine if row.metric == mine[0].metric]
        mean = 100 * sum(found) / len(found)
        said.append(f"{section} {mine[0].metric} {mean:.1f}% (mean of {len(found)})")
    return ", ".join(said) or "nothing to judge"


def _cells(value: Any, path: tuple[str, ...] = ()) -> Iterable[tuple[str, Any]]:
    """(case, cell) of a section, however deep."""
    if "trained" in value:
        yield " ".join(path), value
    elif "skipped" not in value:
        for key, inner in value.items():
            yield from _cells(inner, (*path, key))
