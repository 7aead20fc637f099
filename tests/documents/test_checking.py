"""The check of answers: what stands in the text in another spelling passes, what stands nowhere does not."""

from __future__ import annotations

import pytest

from foreword.documents.checking import PartFinder, facts_of, fault_of

TEXT = """# Harbour rules of Port Elswick

The harbour office opens at 07:30 on 3 May 2024. Anna Miller-Voss runs it with 1,311 berths for twelve
clubs. A berth costs 20.50 € a day; Berlin's boats pay 1 250 € from May 5 to 9, 2025. See rule 3.2.1.
"""
FACTS = facts_of(TEXT)


@pytest.mark.parametrize(
    "answer",
    [
        "It opens at 7:30.",
        "At 07.30 in the morning, on May 3rd, 2024.",
        "On 2024-05-03.",
        "On 3.5.2024, which is 03/05/2024 or 5/3/2024.",
        "It has 1311 berths.",
        "1.311 berths",
        "For 12 clubs.",
        "It costs €20.5.",
        "They pay 1,250 € until 9 May 2025.",
        "Miller runs it.",
        "Anna Miller-Voss",
        "The Berliners pay more. They always do.",
        "Boats pay. Everybody pays. I think so.",
        "Yes, see rule 3.2.1.",
        "1. Berths\n2. Clubs",
        "- The office\n- The berths",
        "In May 2025.",
    ],
)
def test_what_stands_in_the_text_passes_in_every_spelling(answer: str) -> None:
    assert fault_of("Tell me about it.", answer, FACTS) is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("It opens at 8:30.", "number"),
        ("It has 1,312 berths.", "number"),
        ("For fourteen clubs.", "number"),
        ("It costs 20.51 €.", "number"),
        ("See rule 3.2.2.", "number"),
        ("On 4 May 2024.", "date"),
        ("On 3 June 2024.", "date"),
        ("On 2024-05-04.", "date"),
        ("On May 3, 2025.", "date"),
        ("Bob Miller-Voss runs it.", "name"),
        ("Bob.", "name"),
        ("The clerk is called Bob.", "name"),
        ("It is run by NATO.", "name"),
        ("NATO runs the office here.", "name"),
        ("In Hamburg.", "name"),
        ("", "empty"),
        ("  \n", "empty"),
        ("tell me ABOUT it.", "repeats the question"),
        ("it " * 5000, "too long"),
    ],
)
def test_what_stands_nowhere_is_named(answer: str, reason: str) -> None:
    assert fault_of("Tell me about it.", answer, FACTS) == reason


def test_what_the_question_says_may_stand_in_the_answer() -> None:
    question = "Does Bob pay 77 € on 1 June 2030?"
    answer = "No, on 1 June 2030 Bob need not pay 77 €."
    assert fault_of(question, answer, FACTS) is None
    assert fault_of("Does he pay?", answer, FACTS) == "date"


@pytest.mark.parametrize(
    "answer", ["1" * 50_000, "1," * 20_000, "A" * 8000, "a.b" * 2000, "1 111" * 1500, "May 1" * 1500]
)
def test_answers_made_to_be_slow_are_checked_at_once(answer: str) -> None:
    fault_of("What?", answer[:8000], FACTS)


def test_a_conversation_belongs_to_the_part_that_has_its_rare_words() -> None:
    parts = [
        "The harbour office opens at seven.",
        "The harbour has nets for fishing.",
        "The harbour sells ice.",
    ]
    finder = PartFinder(parts)
    assert finder.find("When does the office open?")[0] == 0
    assert finder.find("Where do I get fishing nets in the harbour?")[0] == 1
    number, share = finder.find("Quantum fields in curved spacetime")
    assert (number, share) == (0, 0.0)
    assert finder.find("The harbour sells ice.")[1] == pytest.approx(1.0)
    assert finder.find("")[1] == 0.0
