"""Make questions with short answers, and write rows to files."""

import json

PLACES = ["Turin", "Oslo", "Lima", "Kyoto", "Quito", "Porto", "Riga", "Perth", "Minsk", "Dakar"]


PEOPLE = ["Ada", "Bruno", "Chen", "Dora", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jun"]


def question_rows(count, shift=0):
    """Make rows with SQuAD's columns, whose answers are one word of the context."""
    rows = []
    for number in range(count):
        person, place = PEOPLE[number % 10], PLACES[(number + number // 10 + shift) % 10]
        context = f"{person} was born in the spring and lives in {place}."
        if number % 3 == 0:
            context = f"It is a long story. {context} The garden is full of old trees and young birds."
        answers = {"text": [place], "answer_start": [context.index(place)]}
        rows.append(
            {"id": str(number), "context": context, "question": f"Where does {person} live?", "answers": answers}
        )
    return rows


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


HOSTILE = '<img src=x onerror="alert(1)"> [link](javascript:alert(2)) $$\\frac{1}{2}$$ ${alert(3)} {{ 7*7 }}'
"""A text that a page must show as it is: HTML, a link of markdown, a formula, and two kinds of templates."""
