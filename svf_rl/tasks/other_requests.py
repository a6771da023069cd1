"""Requests that are neither code, nor maths, nor reasoning: the rows `other` of the task `dispatch`.

No benchmark of the experts has such rows, so they are generated here: a form of request with a topic in it. A form
belongs to one split, so the accuracy on `other` is measured on forms that were never trained on.
"""

from random import Random

from svf_rl.errors import SVFError

TOPICS = (
    "gardening", "the sea", "old trains", "winter mornings", "coffee", "chess", "stray cats", "jazz", "bicycles",
    "camping", "fresh bread", "city parks", "long letters", "board games", "lighthouses", "rainy weekends",
)  # fmt: skip
FORMS = {
    "train": (
        "Write a short poem about {}.",
        "Tell me a joke about {}.",
        "Translate this into French: I have always liked {}.",
        "Write a friendly e-mail that invites a colleague to a talk on {}.",
        "Give me a catchy title for a blog about {}.",
        "Write the first paragraph of a novel that begins with {}.",
        "What do you like about {}?",
        "Pretend to be a pirate and tell me about {}.",
        "Write the chorus of a song about {}.",
        "Make this sentence more polite: stop talking about {}.",
        "Draft a birthday card for a friend who loves {}.",
        "Recommend a film to somebody who enjoys {}.",
        "Turn this into a newspaper headline: my uncle has discovered {}.",
        "Hi! How are you today? I am in the mood to chat about {}.",
        "Write a short post in praise of {}.",
        "Translate this into Spanish: my sister dreams of {}.",
        "Describe {} to a child in a cheerful voice.",
        "Write a dialogue between two old friends about {}.",
        "Think of a gift for my aunt, who is fond of {}.",
        "Write the text on the back of a calendar about {}.",
    ),
    "validation": (
        "Compose a haiku about {}.",
        "Translate this into German: tomorrow we will talk about {}.",
        "Help me open a wedding speech with a line on {}.",
        "Write a diary entry of somebody who has had enough of {}.",
        "Which novel would you give to a person who cares for {}?",
    ),
    "test": (
        "Write a limerick about {}.",
        "Turn this into a formal invitation: come over, we celebrate {}.",
        "Tell me a bedtime story about {}.",
        "Think of a slogan for a club devoted to {}.",
    ),
}


def other_requests(split: str, count: int) -> list[str]:
    """`count` different requests, always the same. Raises `SVFError` if there are fewer."""
    requests = [form.format(topic) for form in FORMS[split] for topic in TOPICS]
    if count > len(requests):
        raise SVFError(f"there are {len(requests)} {split} requests of the class other: {count} were asked for")
    Random(f"other {split}").shuffle(requests)
    return requests[:count]
