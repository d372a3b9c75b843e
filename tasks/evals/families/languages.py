from __future__ import annotations

import random
from collections.abc import Sequence

from tasks.evals.families.family import Family, Template, text
from tasks.evals.families.words import LETTERS, NAMES
from tasks.evals.model import Ask

LATIN = ("Öl", "Straße", "naïve", "façade", "señor", "über", "żółw", "smörgås", "křída", "ağaç", "crème", "élève")
GREEK = ("θάλασσα", "ουρανός", "δέντρο", "βιβλίο", "φως", "νερό", "πόλη", "γάτα", "ήλιος", "δρόμος", "σπίτι")
CYRILLIC = ("Москва", "книга", "вода", "город", "солнце", "кошка", "дерево", "улица", "небо", "море", "хлеб")
EAST_ASIAN = (
    "東京",
    "図書館",
    "先生",
    "火曜日",
    "ありがとう",
    "カメラ",
    "天气",
    "苹果",
    "学生",
    "김치",
    "서울",
    "나무",
)
RIGHT_TO_LEFT = ("سلام", "كتاب", "مدينة", "شمس", "ماء", "קפה", "שלום", "ספר", "עיר", "מים", "بيت")

SOUNDS = dict(zip("абвгдезиклмнопрстуф", "abvgdeziklmnoprstuf", strict=True))


def _copy(words: Sequence[str]) -> Template:
    def make(r: random.Random, level: int) -> Ask:
        said = " ".join(r.sample(words, 2 + level))
        return text(f"Repeat these words: {said}", said, max_tokens=16 * (3 + level))

    return make


def _sentence(r: random.Random, level: int) -> Ask:
    sentence = f"{r.choice(NAMES)} has {r.randint(2, 30)} books and {r.randint(2, 30)} pens."
    sentence += "".join(f" {r.choice(NAMES)} has {r.randint(2, 3000)} cards." for _ in range(level))
    return text(f"Repeat this sentence: {sentence}", sentence, max_tokens=24 + 16 * (1 + level))


def _code(r: random.Random, level: int) -> Ask:
    code = "-".join("".join(r.sample(LETTERS, 3)) + str(r.randint(100, 999)) for _ in range(1 + level))
    return text(f"Repeat this sentence: The code is {code}.", f"The code is {code}.", max_tokens=24 + 16 * (1 + level))


def _to_latin(r: random.Random, level: int) -> Ask:
    word = "".join(r.choice("бвгдзклмнпрст") + r.choice("аеиоу") for _ in range(1 + level))
    table = ", ".join(f"{c}={SOUNDS[c]}" for c in sorted(set(word)))
    return text(
        f"Write {word} in Latin letters ({table}). Answer with the word only.", "".join(SOUNDS[c] for c in word)
    )


FAMILY = Family(
    "languages",
    "bytes of other scripts through tokenizer, detokenizer and streaming, unchanged",
    {
        "sentence": _sentence, "code": _code, "accents": _copy(LATIN), "Greek": _copy(GREEK),
        "Cyrillic": _copy(CYRILLIC), "East Asian": _copy(EAST_ASIAN), "right to left": _copy(RIGHT_TO_LEFT),
        "to Latin": _to_latin,
    },
)  # fmt: skip
