"""Whether keeping the weights' transforms would pay: ``python benchmarks/weights_cache.py --help``.

GCSA transforms its weights in every call, a few at a time, and multiplies while their spectra are in the
first-level cache. A cache would read the spectra of an earlier call from memory instead, many more bytes than
the weights, and it would have to read all weights as well: writing to ``weight.data`` leaves no trace but in
the values. Measured are, taking turns in one process: a whole call, its complex products with and without the
transforms, and reading as many bytes as the spectra and as the weights have.

A call with a cache is estimated at its best: each spectrum is read once however many groups of tiles there
are, and comparing the weights with what they were reads them and nothing else. Of the two gains the lower one
is for products that wait for the spectra, the higher one for reading that hides behind the products.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from cases import MAPS
from paired import DISTURBED, waited
from torch import Tensor

from gcsa_ext.backends import cpu, native
from gcsa_ext.nn import GCSA

KERNEL = 7


@dataclass(frozen=True)
class Found:
    """Of GCSA on one shape (N, C, H, W): medians in seconds.

    Attributes:
        call: the whole call in eval mode, as it is.
        transforms: of the weights of both convolutions; the difference of `products` with and without.
        products: the complex products of each convolution without the transforms.
        reading: the spectra of each convolution's weights.
        noticing: reading all weights of both convolutions.
        weight_bytes, spectra_bytes: of both convolutions.
        disturbed: other processes were in the way.
    """

    shape: Sequence[int]
    call: float
    transforms: float
    products: tuple[float, float]
    reading: tuple[float, float]
    noticing: float
    weight_bytes: int
    spectra_bytes: int
    disturbed: bool = False

    def cached(self, overlapping: bool) -> float:
        """Seconds of a call with a cache, reading the spectra during the products or before them."""
        hidden = sum(map(min, self.products, self.reading)) if overlapping else 0.0
        return self.call - self.transforms + sum(self.reading) - hidden + self.noticing


def compare(shape: Sequence[int], seconds: float) -> Found:
    """Measure one shape (N, C, H, W), for about so long and at least five rounds.

    Raises:
        RuntimeError: there is no compiled module.
    """
    extension = native.extension
    if extension is None:
        raise RuntimeError(native.load_error)
    N, C, H, W = shape
    h, threads = C // 4, torch.get_num_threads()
    module, x = GCSA(C, kernel_size=KERNEL).eval(), torch.randn(N, C, H, W)
    convolutions = [module.spatial_attention[i].weight.detach() for i in (0, 3)]
    channels = ((C, h), (h, C))

    def products(which: int, transforms: bool) -> tuple[float, int]:
        address = convolutions[which].data_ptr()
        seconds, bytes_ = extension.time_products(
            N, *channels[which], H, W, KERNEL, threads, address, transforms
        )
        return float(seconds), int(bytes_)

    def read(tensor: Tensor) -> float:
        return float(extension.time_reading(tensor.data_ptr(), tensor.nbytes, threads))

    def call() -> float:
        start = time.perf_counter()
        module(x)
        return time.perf_counter() - start

    spectra = [torch.ones(products(i, False)[1] // 4) for i in (0, 1)]
    calls = {
        "call": call,
        "weights": lambda: sum(map(read, convolutions)),
        **{f"spectra {i}": lambda i=i: read(spectra[i]) for i in (0, 1)},
        **{f"products {i}": lambda i=i: products(i, False)[0] for i in (0, 1)},
        **{f"with transforms {i}": lambda i=i: products(i, True)[0] for i in (0, 1)},
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffled = list(calls), random.Random(0)
    with torch.no_grad():
        for name in order:
            calls[name]()
        begin, before = time.perf_counter(), waited()
        while len(times["call"]) < 5 or time.perf_counter() - begin < seconds:
            shuffled.shuffle(order)
            for name in order:
                times[name].append(calls[name]())
    disturbed = (waited() - before) / (time.perf_counter() - begin) > DISTURBED
    median = {name: statistics.median(spans) for name, spans in times.items()}
    plain = median["products 0"], median["products 1"]
    return Found(
        shape=tuple(shape),
        call=median["call"],
        transforms=max(median["with transforms 0"] + median["with transforms 1"] - sum(plain), 0.0),
        products=plain,
        reading=(median["spectra 0"], median["spectra 1"]),
        noticing=median["weights"],
        weight_bytes=sum(weight.nbytes for weight in convolutions),
        spectra_bytes=sum(tensor.nbytes for tensor in spectra),
        disturbed=disturbed,
    )


def table(found: Iterable[Found]) -> str:
    """The Markdown table; times in milliseconds."""
    lines = [
        "| shape | call | transforms of weights | products | weights MB | reading them | spectra MB "
        "| reading them | a cache's gain, at best |",
        "|---|" + "--:|" * 8,
    ]
    for one in found:
        name = "x".join(map(str, one.shape)) + " disturbed" * one.disturbed
        low, high = (one.call / one.cached(overlapping) for overlapping in (False, True))
        spans = one.call, one.transforms, sum(one.products), one.noticing, sum(one.reading)
        call, transforms, products, noticing, reading = (f"{1e3 * span:.2f}" for span in spans)
        cells = [name, call, transforms, products, f"{one.weight_bytes / 1e6:.1f}", noticing]
        cells += [f"{one.spectra_bytes / 1e6:.1f}", reading, f"{low:.2f}x to {high:.2f}x"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Whether keeping the weights' transforms would pay.")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape (default 2)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = []
    for shape in [(N, *sizes) for N in (8, 1) for sizes in MAPS]:
        print("x".join(map(str, shape)), file=sys.stderr, flush=True)
        found.append(compare(shape, arguments.seconds))
    print(f"GCSA in eval mode, float32, {arguments.threads} threads, {cpu.isa()}; milliseconds.\n")
    print(table(found))


if __name__ == "__main__":
    main()
