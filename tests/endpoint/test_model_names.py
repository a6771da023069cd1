"""What a request can name as its model."""

import pytest

from svf_rl.endpoint.model_names import parse_mixture
from svf_rl.endpoint.settings import EndpointSettings
from svf_rl.errors import SVFError

EXPERTS = {"math": "runs/math", "code": "runs/code", "qa": "OWNER/NAME"}


@pytest.mark.parametrize(
    ("name", "folders", "weights"),
    [
        ("math:0.6+code:0.4", ("runs/math", "runs/code"), (0.6, 0.4)),
        ("code:0.4+math:.6", ("runs/math", "runs/code"), (0.6, 0.4)),  # the same one
        ("qa:-1e0", ("OWNER/NAME",), (-1.0,)),
    ],
)
def test_weights_of_experts_are_a_mixture(name: str, folders: tuple[str, ...], weights: tuple[float, ...]) -> None:
    mixture = parse_mixture(name, EXPERTS)
    assert mixture is not None
    assert (mixture.experts, mixture.alpha, mixture.form) == (folders, (weights,), "deviation")


def test_a_name_without_weights_is_vllms_own_affair() -> None:
    assert [parse_mixture(name, EXPERTS) for name in ("math", "base", "math+code", "")] == [None] * 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("math:0.6+law:0.4", "no expert 'law'"),
        ("math:0.6+math:0.4", "names math twice"),
        ("math:", "no weight from -4 to 4"),
        ("math:nan", "no weight"),
        ("math:1e9", "no weight"),
        ("math:0.5+", "no expert ''"),
        (":" * 10_000, "no expert ''"),
        ("math:1\n+code:x", "no weight"),
    ],
)
def test_a_mixture_that_cannot_be_made_is_said_in_one_short_line(name: str, said: str) -> None:
    with pytest.raises(SVFError, match=said) as refused:
        parse_mixture(name, EXPERTS)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["base", "auto", "classifier", "other", "a:b", "a+b", "a b", "a/b", "", "x" * 65, "a\n"]
)
def test_a_name_that_a_request_could_not_give_is_refused(name: str) -> None:
    with pytest.raises(SVFError):
        EndpointSettings("model", {name: "runs/math"})


def test_classes_are_those_that_classifiers_say_or_the_names_of_experts() -> None:
    assert EndpointSettings("model", {"math": "a", "reasoning": "b"}).classes == ("code", "math", "reasoning", "other")
    assert EndpointSettings("model", {"math": "a", "law": "b"}).classes == ("math", "law", "other")
    assert EndpointSettings("model", {"law": "b"}, labels=["law", "trade"]).classes == ("law", "trade")
