"""What a model costs: parameters, arithmetic, milliseconds and megabytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipling.engine.timing import CAPTION, ROUNDS, latencies
from clipling.environment import environment
from clipling.errors import UserError
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, PAIRS, Found, floats
from clipling.evals.suite.subject import Subject
from clipling.evals.zeroshot import prompts
from clipling.models.dual import Student
from clipling.models.towers import needed_lengths

LOOKED_AT = 1000  # pictures whose captions (or prompts that) decide the mean length
METRICS = ("parameters", "parameters_without_token_rows", "image_gflops", "text_gflops", "image_ms", "text_ms", "file_mb")


@dataclass(frozen=True)
class Cost:
    """Size, arithmetic and time of one picture and one caption.

    parameters, parameters_without_token_rows: of the whole model, and without its table of token embeddings.
    image_gflops, text_gflops: 1e9 floating-point operations of one picture, and of one caption that fills the context, as published
        tables have it. A multiply-add counts as 2. Matrix products, convolutions and attention are counted; activations,
        normalisation and pooling are not. It is this package's own text tower that is counted, whose last layer computes the
        pooled position alone, so the number is below that of the stock tower. `details["text"]` has the number for a caption of this
        dataset's mean length (padding is not computed where that is exact).
    image_ms, text_ms: the least of `rounds` calls, batch 1, with the threads in the details; the caption has ten words.
    file_mb: 1e6 bytes of the weights as saved, buffers and the full table of token embeddings included.
    """

    task: ClassVar[str] = "cost"
    takes: ClassVar[frozenset[str]] = frozenset({PAIRS, LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("parameters", "image_gflops", "image_ms", "text_ms")
    lower: ClassVar[frozenset[str]] = frozenset(METRICS)

    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"cost: rounds is {self.rounds}; expected a whole number from 1 on")

    def skipped(self, dataset: Dataset) -> str | None:
        return None

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        student = subject.student
        sizes = student.sizes()
        text = _text(student, dataset)
        spent = latencies({subject.name: student}, self.rounds)[subject.name]
        found = {
            "parameters": sizes["total"],
            "parameters_without_token_rows": sizes["total_without_token_rows"],
            "image_gflops": image_flops(student) / 1e9,
            "text_gflops": text["gflops_full"],
            **spent,
            "file_mb": sum(value.numel() * value.element_size() for value in student.stock_state().values()) / 1e6,
        }
        details = {"sizes": sizes, "text": text, "threads": torch.get_num_threads(), "environment": environment(), "rounds": self.rounds}
        machine = details["environment"]["machine"]
        notes = [
            f"Times are of this machine ({machine['processor']}, {details['threads']} threads) and differ from call to call.",
            "GFLOPs count a multiply-add as 2; text_gflops is of a caption that fills the context, text_ms of one of ten words.",
        ]
        return Found(metrics=floats({name: found[name] for name in METRICS}), details=details, notes=notes)


def image_flops(student: Student) -> int:
    """Floating-point operations of one picture; a multiply-add counts as 2."""
    pixels = student.normalise(torch.zeros(1, 3, student.image_size, student.image_size, dtype=torch.uint8))
    return _counted(student, lambda: student.encode_image(pixels))


def text_flops(student: Student, text: str) -> int:
    """Floating-point operations of one text, likewise."""
    tokens = student.tokenise([text])
    return _counted(student, lambda: student.encode_text(tokens))


def lengths(student: Student, texts: Sequence[str]) -> list[int]:
    """How many tokens of each text are computed: the whole context where the tower's result depends on the padding."""
    tokens = student.tokenise(texts)
    needed = needed_lengths(student.model.text, tokens)
    return [tokens.shape[1]] * len(texts) if needed is None else needed.tolist()


def _text(student: Student, dataset: Dataset) -> dict[str, Any]:
    """What captions (of labelled pictures: prompts) cost: one that fills the context, one nearest to the mean length, the timed one."""
    if dataset.kind == LABELLED:
        texts = prompts(dataset.labelled.classnames, dataset.labelled.templates)[:LOOKED_AT]
    else:
        texts = [caption for i in dataset.sample(LOOKED_AT) for caption in dataset.pairs.captions_of(i)]
        texts = texts or dataset.pairs.captions[:LOOKED_AT] or [CAPTION]
    full = "dog " * student.context_length
    counts = lengths(student, texts)
    mean = sum(counts) / len(counts)
    nearest = min(range(len(texts)), key=lambda i: abs(counts[i] - mean))
    return {
        "tokens_full": lengths(student, [full])[0],
        "gflops_full": text_flops(student, full) / 1e9,
        "tokens_mean": mean,
        "tokens_nearest": counts[nearest],
        "gflops_nearest": text_flops(student, texts[nearest]) / 1e9,
        "tokens_timed": lengths(student, [CAPTION])[0],
    }


def _counted(student: Student, call: Callable[[], Any]) -> int:
    counter = FlopCounterMode(display=False)
    # With gradients: the counter's hooks fail on a view of a parameter without (the latent query of SigLIP's pooling).
    with student.evaluating(), _nothing_fused(), torch.enable_grad(), counter:
        call()
    return int(counter.get_total_flops())


@contextmanager
def _nothing_fused() -> Iterator[None]:
    """Attention as plain matrix products: torch's counter does not know the fused kernels of the CPU and would count them as nothing."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
