"""Bit widths as words: what prints reads back, and what cannot be is told in one line."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from quantune.errors import UsageError
from quantune.numerics.formats import FORMATS
from quantune.quantization import space
from quantune.quantization.bits import ACTIVATION_BITS, F32, UNIFORM_8, BitWidths, LayerBits
from quantune.quantization.config import QuantConfig

integers = st.builds(
    lambda name, activations: LayerBits(FORMATS[name].bits, activations, name),
    st.sampled_from(sorted(FORMATS)), st.sampled_from(ACTIVATION_BITS),
)  # fmt: skip
choices = integers | st.just(F32)
names = st.text(min_size=1, max_size=12)
widths = st.builds(
    lambda default, layers: BitWidths(default, tuple(layers.items())), integers, st.dictionaries(names, choices)
) | st.builds(lambda layers: BitWidths(F32, tuple(layers.items())), st.dictionaries(names, integers, min_size=1))


@given(widths)
def test_widths_print_and_parse(bits: BitWidths) -> None:
    text = str(bits)
    assert BitWidths.parse(text) == bits
    assert "," not in text
    assert "=" not in text


@given(widths)
def test_a_configuration_prints_to_one_line_and_a_trial_s_parameters_hold_it(bits: BitWidths) -> None:
    config = QuantConfig(clip="kl", bits=bits)
    assert QuantConfig.parse(str(config)) == config
    assert space.from_params(space.to_params(config)) == config
    assert hash(QuantConfig.parse(str(config))) == hash(config)


@given(st.dictionaries(names, choices, min_size=1))
def test_layers_are_what_they_were_told_to_be(layers: dict[str, LayerBits]) -> None:
    assume(set(layers.values()) != {F32})
    bits = BitWidths.of_layers(layers.items())
    assert {name: bits.of(name) for name in layers} == layers
    assert len(bits.layers) <= len(layers) * (1 - 1 / len(set(layers.values())))  # the default is the commonest


def test_eight_bits_everywhere_are_not_printed() -> None:
    assert "bits" not in str(QuantConfig())
    assert QuantConfig.parse("bits=w8a8") == QuantConfig()
    assert BitWidths(LayerBits(4), (("a", LayerBits(4)),)) == BitWidths(LayerBits(4))
    assert BitWidths().of("any") == LayerBits(8, 8)


def test_what_came_after_the_first_version_is_named_only_where_it_is_not_the_default() -> None:
    first = "calib=1000,scheme=asymmetric,clip=max,granularity=channel,precision=int8"
    assert str(QuantConfig()) == first
    assert set(QuantConfig().options()) == set(space.to_params(QuantConfig())) == set(space.PARAMETERS)
    cut = QuantConfig(weight_clip="mse", bits=BitWidths(LayerBits(4)))
    assert str(cut) == f"{first},bits=w4a8,weight_clip=mse"
    assert QuantConfig.parse(str(cut)) == space.from_params(space.to_params(cut)) == cut
    assert len(space.LEVEL1) == 96
    assert all(set(space.to_params(config)) == set(space.PARAMETERS) for config in space.LEVEL1)


def test_tables_count_the_layers_instead_of_naming_them() -> None:
    bits = BitWidths.parse("w8a8/w3a8:features.0.0+head")
    assert QuantConfig(clip="kl", bits=bits).brief.endswith("precision=int8,bits=w8a8 but for 2 layers")
    assert QuantConfig(bits=BitWidths(LayerBits(4))).brief.endswith(",bits=w4a8")
    assert QuantConfig(precision="f32", bits=bits).brief == "precision=f32"


def test_the_compact_form() -> None:
    bits = BitWidths.parse("w4/w8:features.0.0+head/w3a4:a#2")
    assert bits.default == LayerBits(4, 8)
    assert bits.of("head") == LayerBits(8, 8)
    assert bits.of("a#2") == LayerBits(3, 4)
    assert str(bits) == "w4a8/w3a4:a#2/w8a8:features.0.0+head"


def test_a_layer_may_stay_float_or_be_the_only_one_that_does_not() -> None:
    bits = BitWidths.parse("w4/f32:head/w8:stem")
    assert bits.of("head") == F32
    assert str(bits) == "w4a8/w8a8:stem/f32:head"
    assert bits.in_float == (False, {"head"})
    assert BitWidths.parse("f32/w8:stem").in_float == (True, {"stem"})
    assert BitWidths.parse("w2/w8:stem").in_float == BitWidths.parse("w8").in_float
    for wrong in (LayerBits, lambda *widths: LayerBits(*reversed(widths))):
        with pytest.raises(UsageError, match="32 bits for"):
            wrong(8, 32)


def test_formats_are_named_beside_widths() -> None:
    bits = BitWidths.parse("w4/w2h:a+b/e2m1a4:c/w4k:d/w1:e")
    assert bits.of("a") == bits.of("b") == LayerBits(2, 8, "w2h")
    assert bits.of("c") == LayerBits(4, 4, "e2m1")
    assert bits.of("e").weights == 1
    assert str(bits) == "w4a8/w1a8:e/w2ha8:a+b/e2m1a4:c/w4ka8:d"
    assert LayerBits(4, 8, "w4") == LayerBits(4)
    assert len({LayerBits(4), LayerBits(4, 8, "w4h"), LayerBits(4, 8, "w4k")}) == 3


@pytest.mark.parametrize("wrong", [(3, 8, "w2h"), (1, 8, "w1x"), (1, 8), (9, 8), (4, 5, "w4h"), ("4", 8)])
def test_a_choice_that_does_not_exist_is_refused(wrong: tuple) -> None:
    with pytest.raises(UsageError):
        LayerBits(*wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bits '': expected for example w4 or w4a8"),
        ("4", "bits '4': expected for example w4 or w4a8"),
        ("w9", "bits 'w9': expected for example w4 or w4a8, a format of weights, such as w2h"),
        ("w4a", "bits 'w4a': expected for example"),
        ("w4/w2H:a", r"bits 'w2H': .* \(did you mean w2"),
        ("e2m2a8", r"bits 'e2m2a8': .* \(did you mean e3m2"),
        ("w4a5", "5 bits for activations: expected one of 4, 8"),
        ("w4/w8", "bits 'w8': expected a choice and its layers"),
        ("w4/w8:", "a layer has no name"),
        ("w4/w8:a/w3:a", "layer 'a' is given twice"),
        ("f32", "bits=f32: no layer is quantized; that is precision=f32"),
        ("f32/f32:a", "bits=f32: no layer is quantized"),
        ("w8/f32a8:a", "bits 'f32a8': expected .*or f32"),
        ("w8/f16:a", "bits 'f16': expected .*or f32"),
        ("w8/f32:a/w8:a", "layer 'a' is given twice"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        QuantConfig.parse(f"bits={text}")
    assert "\n" not in str(error.value)


def test_the_space_has_the_bits_to_choose_from() -> None:
    four = BitWidths(LayerBits(4))
    assert "bits" not in space.distributions()
    found = space.distributions([four, UNIFORM_8])["bits"]
    assert found.choices == ("w4a8", "w8a8")
