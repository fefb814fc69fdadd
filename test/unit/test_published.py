"""The bit lists that OMPQ's authors publish come out of their own solver with nothing to optimise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from quantune.allocation.published import MEGABYTE, published


def _resnet18() -> list[int]:
    """Parameters as the authors count them: batch norms' 2 a channel; a block's second layer has the way around's."""
    sizes, inputs = [3 * 49 * 64 + 2 * 64], 64
    for stage, width in enumerate((64, 128, 256, 512)):
        around = inputs * width + 2 * width if stage else 0
        sizes += [inputs * 9 * width + 2 * width, width * 9 * width + 2 * width + around]
        sizes += [width * 9 * width + 2 * width] * 2
        inputs = width
    return [*sizes, 513 * 1000]


def _mobilenet_v2() -> list[int]:
    sizes, inputs = [27 * 32 + 64], 32
    for expansion, width, count in (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ):
        for _ in range(count):
            hidden = inputs * expansion
            sizes += [inputs * hidden + 2 * hidden] * (expansion > 1)
            sizes += [9 * hidden + 2 * hidden, hidden * width + 2 * width]
            inputs = width
    return [*sizes, 320 * 1280 + 2 * 1280, 1281 * 1000]


RESNET18 = {  # PTQ/run_scripts/train_resnet18.sh; 3.5 MB is the one that comes out a little below its name
    3.0: "434444434422222222", 3.499: "433444444433432223", 4.0: "444444433333432333",
    4.5: "433444444433443333", 5.0: "433344434343433444", 5.5: "444444444434444444",
}  # fmt: skip
MOBILENET_V2 = {  # PTQ/run_scripts/train_mobilenetv2.sh; what is called 1.3 MB has 1.280
    1.5: "4" * 52 + "3", 1.28: "4" * 50 + "332", 1.1: "4" * 41 + "334334334222",
    0.9: "4" * 21 + "34334334334324224224224224224222",
}  # fmt: skip


@pytest.mark.parametrize("megabytes", RESNET18)
def test_resnet18_s_lists_have_no_orthogonality_in_them(megabytes: float) -> None:
    sizes = _resnet18()
    found = published(np.zeros(len(sizes)), sizes, megabytes)
    assert "".join(map(str, found)) == RESNET18[megabytes]
    assert np.dot(found, sizes) / 8 / MEGABYTE <= megabytes


@pytest.mark.parametrize("megabytes", MOBILENET_V2)
def test_mobilenet_v2_s_lists_have_no_orthogonality_in_them(megabytes: float) -> None:
    sizes = _mobilenet_v2()
    found = published(np.zeros(len(sizes)), sizes, megabytes, nearest=True)
    assert "".join(map(str, found)) == MOBILENET_V2[megabytes]


def test_with_a_worth_the_list_is_another_one() -> None:
    sizes = _resnet18()
    found = published(np.linspace(1, 2, len(sizes)), sizes, 4.0)
    assert "".join(map(str, found)) != RESNET18[4.0]
    assert set(found) <= {2, 3, 4}
    assert set(published(np.ones(4), [MEGABYTE] * 4, 3.0, "qat")) == {6}


def test_a_size_that_cannot_be_is_told() -> None:
    with pytest.raises(ValueError, match=r"no allocation of 0\.1 MB"):
        published(np.zeros(2), [MEGABYTE, MEGABYTE], 0.1)


def test_the_search_comes_nearest_from_below() -> None:
    from quantune.allocation.published import _searched

    bits, sizes = np.array([2.5, 3.25, 2.75, 3.0]), np.array([5.0, 1.0, 3.0, 2.0])
    limit = float(bits @ sizes)
    options = itertools.product(*[{int(np.floor(b)), int(np.ceil(b))} for b in bits])
    below = [float(np.dot(option, sizes)) for option in options if np.dot(option, sizes) <= limit]
    assert float(np.dot(_searched(bits, sizes), sizes)) == max(below)
