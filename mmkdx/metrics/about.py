"""What a report says of a score: the question that it answers, and one sentence."""

from __future__ import annotations

from typing import NamedTuple

#: The questions by which a report groups scores, in its order.
QUESTIONS = {
    'accuracy': 'How accurate is it, and how sure?',
    'agreement': 'Does it decide for the same reasons?',
    'causes': 'Which parts cause the decision?',
    'faithfulness': 'Do the maps show what the model uses?',
    'localisation': 'Do the maps find the object?',
    'complexity': 'How simple and how stable are the maps?',
    'distilled': 'What was distilled?',
    'prototypes': 'Did the prototypes come across?',
    'other': 'Other scores',
}


class About(NamedTuple):
    """What a report says of a score.

    Args:
        question (str): A key of ``QUESTIONS``.
        sentence (str): What the score is, in one sentence. Empty if nobody says.
        guide (str): The page of docs/en/user_guides that explains it, without '.md'.
        variant (str): Where the same score is taken over some of the images, or compared with another
            model: of which. Defaults to '' (all images).
    """

    question: str = 'other'
    sentence: str = ''
    guide: str = ''
    variant: str = ''
