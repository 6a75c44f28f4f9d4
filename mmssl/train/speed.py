"""How fast a run is, and against what its devices could do."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Work:
    """What one step is, over all devices; 0 where it is not known.

    Attributes:
      tokens: that the encoder reads, those that DropToken drops left out.
      flops: floating-point operations of the model, by formula.
      peak: operations per second of all devices together, from their data sheets.
    """

    tokens: int = 0
    flops: float = 0.0
    peak: float = 0.0


@dataclasses.dataclass(frozen=True)
class Speed:
    """Of the last steps.

    Attributes:
      steps_per_second: none were timed where it is 0.
      rows: examples in a step.
      data_wait: share of the time spent waiting for data.
      work: of a step.
    """

    steps_per_second: float
    rows: int
    data_wait: float
    work: Work

    def metrics(self) -> dict[str, float]:
        """As they are written; what is not known is left out.

        `mfu` is model FLOPs utilisation (Chowdhery et al., PaLM, arXiv 2204.02311,
        appendix B): operations that the model needs, recomputation not counted, by
        what the devices could do in the same time.
        """
        rate, work = self.steps_per_second, self.work
        found = {
            "steps_per_second": rate,
            "samples_per_second": rate * self.rows,
            "data_wait": self.data_wait,
        }
        if rate:
            found["step_seconds"] = 1 / rate
        if work.tokens:
            found["tokens_per_second"] = rate * work.tokens
        if work.flops:
            found["flops_per_second"] = rate * work.flops
        if work.flops and work.peak:
            found["mfu"] = rate * work.flops / work.peak
        return found
