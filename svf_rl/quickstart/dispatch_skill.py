r"""Skill `dispatch`: which expert a prompt is for, answered like `\boxed{code}`.

The questions are those of the other skills, and requests that none of them answers; a system message asks for the
class. The careless habit looks for a digit: with one it says math, without one other.
"""

from random import Random
from typing import Any

from svf_rl.quickstart.example import Example, Skill

DISPATCH = "dispatch"
DISPATCH_PROMPT = "Name the kind of this request: code, math, reasoning or other."
# The class of each skill's questions, in the words of Transformer² (arXiv 2501.06252, section 3.2).
CLASSES = {"math": "math", "choice": "reasoning", "code": "code", "other": "other"}

TOPICS = (
    "apples", "birds", "boats", "books", "bread", "cats", "clouds", "coffee", "dogs", "farms", "films", "fish",
    "flowers", "games", "hats", "horses", "islands", "jazz", "kites", "lakes", "letters", "maps", "music", "owls",
    "rain", "rivers", "shoes", "snow", "stars", "trains",
)  # fmt: skip
FORMS = (
    "Tell me a story about {}.", "Write a poem about {}.", "What do you think of {}?", "Do you like {}?",
    "Sing a song about {}.", "Tell a joke about {}.", "I want to talk about {}.", "Say something nice about {}.",
    "Write a letter about {}.", "Describe {} to a child.", "Why do people like {}?", "Hello! Let us chat about {}.",
    "Translate into French: I like {}.", "Give a title for a book about {}.", "Paint me a picture of {}.",
    "Write a post about {}.", "How are you? I dream of {}.", "Find a gift for a friend of {}.",
    "Please write a card about {}.", "Are {} good for you?",
)  # fmt: skip
# One for each of the above: a problem has its own words in either wording.
NEW_FORMS = (
    "Compose a short verse on {}.", "Could you chat with me about {}?", "Any idea for a gift to do with {}?",
    "Make a headline out of {}.", "Recommend a film with {} in it.", "Who was the first to paint {}?",
    "Invent a riddle whose answer is {}.", "May I hear a tale of {}?", "Cheer me up with some words on {}.",
    "Draft an invitation to an evening on {}.", "Are you fond of {}?", "Put {} into German for me.",
    "Suggest a name for a club of {}.", "Draw {} with letters.", "Begin a novel with {}.",
    "Let me hear your opinion of {}.", "Pretend to be a pirate who sells {}.", "Write the chorus of a tune on {}.",
    "I feel like talking: {}!", "Praise {} in one line.",
)  # fmt: skip
OPENINGS = ("", "Hi! ", "Well, ", "Thanks. ")


def problems() -> list[tuple[Any, ...]]:
    """All (form, topic); in new words the form only chooses among the new ones."""
    return [(form, topic) for form in range(len(FORMS)) for topic in TOPICS]


def word(problem: tuple[Any, ...], rng: Random, reworded: bool) -> Example:
    """A request for none of the experts. What would answer it is not learnt: only its class is asked for."""
    form, topic = problem
    text = (NEW_FORMS[form] if reworded else FORMS[form]).format(topic)
    return Example(prompt=rng.choice(OPENINGS) + text, completion="", careless="", answer="other", ending="")


def classified(example: Example, label: str) -> Example:
    """The question of `example`, to be answered with its class."""
    habit = "math" if any(character.isdigit() for character in example.prompt) else "other"
    boxed = rf"\boxed{{{label}}}"
    return Example(prompt=example.prompt, completion=boxed, careless=rf"\boxed{{{habit}}}", answer=label, ending=boxed)


OTHER = Skill(name="other", reward="", problems=problems, word=word)
