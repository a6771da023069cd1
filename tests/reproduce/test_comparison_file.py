"""The file of a comparison: what is wrong with it is said in one line that names the place."""

from pathlib import Path

import pytest

from svf_rl.errors import SVFError
from svf_rl.reproduce.arguments import PARTS
from svf_rl.reproduce.comparison import check_seeds, read_comparison, slug

ONE_SEED = {part: [0] for part in PARTS}
RECIPE = {"recipe": str(Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml")}


def test_a_file_says_what_is_compared(write_comparison):
    comparison = read_comparison(write_comparison(classes={"math": "math"}, dispatch={**RECIPE, "skill": "dispatch"}))
    assert list(comparison.experts) == ["math", "code"]
    assert comparison.experts["code"].overrides == {"skill": "code"}
    assert comparison.dispatch is not None
    assert (comparison.few_shot.shots, comparison.few_shot.population) == (2, 4)
    assert (comparison.unseen[0].label, comparison.unseen[0].task) == ("exam", "exam")


def test_classes_are_those_of_the_dispatch_expert(write_comparison):
    classes = {"sums": "quickstart:math", "programs": "quickstart:code"}
    dispatch = {**RECIPE, "task": "dispatch", "classes": classes}
    given = {"sums": "math", "programs": "code"}
    assert read_comparison(write_comparison(classes=given, dispatch=dispatch)).classes == given
    with pytest.raises(SVFError, match="unknown class 'math': use one of sums, programs"):
        read_comparison(write_comparison(classes={"math": "math"}, dispatch=dispatch))
    with pytest.raises(SVFError, match="classes must be a mapping"):
        read_comparison(write_comparison(classes=given, dispatch={**dispatch, "classes": ["sums"]}))


def test_recipes_are_found_from_the_folder_of_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("model_name_or_path: quickstart\n")
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "compare.yaml"
    file.write_text("model: quickstart\nexperts: {a: {recipe: ../mine.yaml}}\n")
    assert read_comparison(file).experts["a"].path == tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experst": {}}, "unknown key 'experst' in the comparison; the nearest one is 'experts'"),
        ({"model": None}, "needs the key 'model'"),
        ({"experts": {}}, "needs the key 'experts'"),
        ({"seeds": "zero"}, "seeds must be a list of integers or a mapping of names to values, not 'zero'"),
        ({"seeds": [0, 0]}, "seeds must be different numbers from 0 to 4294967295, not 0,0"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": {"fine_tunin": [0]}}, "unknown key 'fine_tunin' in seeds; the nearest one is 'fine_tuning'"),
        (
            {"seeds": {"fine_tuning": [0], "probes": [0]}},
            "seeds by part: adaptation, ablations has none; give one list",
        ),
        ({"seeds": {**ONE_SEED, "probes": []}}, "seeds is empty"),
        ({"experts": {"a": "quickstart"}}, "expert 'a' must be a mapping with a recipe"),
        ({"experts": {"a": {"recipe": "nowhere.yaml"}}}, "expert 'a': there is no recipe"),
        ({"experts": {"mean": RECIPE}}, "expert 'mean'"),
        ({"experts": {"few-shot-3": RECIPE}}, "expert 'few-shot-3'"),
        ({"experts": {"../a": RECIPE}}, "expert '../a'"),
        ({"classes": {"math": "choice"}}, "classes: math names the expert 'choice'; the experts are math, code"),
        ({"classes": {"poetry": "math"}}, "unknown class 'poetry': use one of code, math, reasoning"),
        ({"classes": {"other": "math"}}, "class 'other' is what the base model answers"),
        ({"dispatch": RECIPE}, "a dispatch expert needs classes"),
        ({"unseen": {"exam": "exam"}}, "unseen task 'exam' must be a mapping with a task"),
        ({"unseen": {"exam": {"task": "exams"}}}, "unknown task 'exams'"),
        ({"unseen": {"exam": {"task": "exam", "wordin": "x"}}}, "the nearest one is 'wording'"),
        ({"unseen": {"a b": {"task": "exam"}, "a  b": {"task": "exam"}}}, "would share a folder"),
        ({"probes": {"pass@4": {"limit": 4}, "pass 4": {"limit": 5}}}, "probes 'pass@4' and 'pass 4' would share"),
        ({"few_shot": {"shot": 3}}, "unknown key 'shot' in few_shot; the nearest one is 'shots'"),
        ({"few_shot": {"shots": 0}}, "shots must be 1 or more, not 0"),
        ({"few_shot": {"seed": 1}}, "few_shot takes no seed"),
        ({"few_shot": {"weights": {"greedi": 1}}}, "the nearest one is 'greedy'"),
        ({"evaluation": {"backend": "tgi"}}, "evaluation: backend must be vllm or transformers"),
        ({"ablations": {"experts": ["choice"]}}, "ablations: there is no expert 'choice'; the experts are math, code"),
        ({"ablations": {"variants": {"a": {"beta": 0}}}}, "ablations: name the experts"),
        ({"ablations": {"experts": ["math"], "variants": {"a": 3}}}, "variant 'a'"),
        ({"ablations": {"shots": [0]}}, "shots must be at least 1, not 0"),
        ({"probes": {"zero": {"option": {}}}}, "unknown key 'option' in probe 'zero'; the nearest one is 'options'"),
        ({"probes": {"zero": {"options": {"shot": 0}}}}, "unknown key 'shot' in probe 'zero': options"),
        ({"probes": {"zero": {"methods": ["dora"]}}}, "probe 'zero': there is no method 'dora'; there are: svf, lora"),
        ({"probes": {"zero": {"experts": {"choice": {}}}}}, "probe 'zero': there is no expert 'choice'"),
        (
            {"probes": {"zero": {"experts": {"math": 3}}}},
            "probe 'zero': options must be a mapping of keys and values, not 3",
        ),
        ({"probes": {"zero": {"options": {"skill": "code"}}}}, "probe 'zero': skill is part of the expert's task"),
        ({"classes": {"math": ["math"]}}, "classes: math names the expert ['math']; the experts are math, code"),
        ({"probes": {"..": {"limit": 1}}}, "'..' gives no file a name"),
        ({"unseen": {"?": {"task": "exam"}}}, "'?' gives no file a name: use letters or digits, and at most 100 bytes"),
        ({"unseen": {"x" * 101: {"task": "exam"}}}, "gives no file a name"),
        ({"experts": {"x" * 101: RECIPE}}, "gives no file a name"),
        ({"ablations": {"experts": ["math"], "variants": {"SVF": {"beta": 0}}}}, "variant 'SVF'"),
        ({"probes": {"zero": 3}}, "probe 'zero' must be a mapping"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(write_comparison, changes, message):
    with pytest.raises(SVFError) as error:
        read_comparison(write_comparison(**changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(SVFError, match=r"nowhere\.yaml cannot be read"):
        read_comparison("nowhere.yaml")


def test_seeds_are_different_and_not_negative():
    assert check_seeds([2, 0]) == [2, 0]
    for seeds in ([-1], [2**32], [1, 1], []):
        with pytest.raises(SVFError, match="seeds"):
            check_seeds(seeds)


def test_a_name_becomes_part_of_a_file_name():
    assert slug("MLP and attention") == "MLP-and-attention"
    assert slug("a/../b") == "a-..-b"
    assert slug("数学, leicht") == "数学-leicht"
