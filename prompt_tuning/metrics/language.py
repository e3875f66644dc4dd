"""Tell metrics about a language: its code, and whether it puts spaces between words."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from prompt_tuning.support.text import UNSPACED_SCRIPTS, words

# Metrics treat these languages differently. NLLB's codes ("zho_Hans") begin with ISO 639-3; 639-2/B is common too.
_ISO_639_1 = {
    "eng": "en",
    "zho": "zh",
    "chi": "zh",
    "cmn": "zh",
    "yue": "zh",
    "jpn": "ja",
    "kor": "ko",
    "tha": "th",
    "lao": "lo",
    "khm": "km",
    "mya": "my",
    "bur": "my",
    "bod": "bo",
    "tib": "bo",
    "dzo": "dz",
}

UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "bo", "dz"})
"""Languages without spaces between words; their tokens are characters."""

# The languages that are written in a script, by the first word of Unicode's names of its letters.
_LANGUAGES_OF_SCRIPT = {
    "CJK": "zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "THAI": "th",
    "LAO": "lo",
    "KHMER": "km",
    "MYANMAR": "my",
    "TIBETAN": "bo",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "GREEK": "el",
}

_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
_CHARACTERS = re.compile(rf"[^\W{UNSPACED_SCRIPTS}]+|\S")


def primary_language(code: str | None) -> str | None:
    """Return the language of a code such as "en", "zh-CN", "pt_br" or "jpn_Jpan" without its region or script.

    The result is ISO 639-1 for the languages that metrics treat differently, and otherwise the code in lower case. It
    is None without a code.

    >>> primary_language("zho_Hans"), primary_language("pt-BR"), primary_language(None)
    ('zh', 'pt', None)
    """
    primary = re.split(r"[-_]", (code or "").strip().lower())[0]
    return _ISO_639_1.get(primary, primary) or None


def language_of_script(texts: Iterable[str]) -> str | None:
    """Return the most usual language of the script that most words of the texts are written in.

    It is None for Latin letters, and for texts without letters. "und", which is undetermined, is the language of the
    scripts that have no usual one here.

    >>> language_of_script(["渡船于 2019 年离开 GPU"]), language_of_script(["フェリー"]), language_of_script(["ferry"])
    ('zh', 'ja', None)
    """
    scripts = Counter(_script(word[0]) for text in texts if not text.isascii() for word in words(text))
    if scripts["HIRAGANA"] + scripts["KATAKANA"]:
        scripts["HIRAGANA"] += scripts.pop("CJK", 0)  # Japanese has characters of both.
    scripts.pop("", None)
    if not scripts:
        return None
    script = max(scripts, key=scripts.__getitem__)
    return None if script == "LATIN" else _LANGUAGES_OF_SCRIPT.get(script, "und")


@functools.cache
def _script(character: str) -> str:
    """Return the first word of a letter's name, which is its script, or nothing for other characters."""
    name = unicodedata.name(character, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    return name.split(" ")[0] if character.isalpha() else ""


def is_english(language: str | None) -> bool:
    """Return whether the rules for English apply; they do if no language is named."""
    return language in (None, "en")


def narrow(text: str) -> str:
    """Return a text with ordinary letters, digits and signs instead of full-width ones.

    >>> narrow("ＧＰＵ　１９８７年")
    'GPU 1987年'
    """
    return text.translate(_NARROW)


def characters(text: str) -> list[str]:
    """Split a text of an unspaced language into characters, but keep runs of letters or digits of other scripts.

    This is the mixed segmentation of the scripts of CMRC 2018 (Cui et al., 2019) and MLQA (Lewis et al., 2020). Unlike
    there, it holds for all unspaced scripts and not only for CJK ideographs. Unlike there, signs such as ℃ and € are
    tokens and not part of a run. A character is a code point, the same as in sacreBLEU's "char".

    >>> characters("碧昂丝（Beyoncé）于2019年")
    ['碧', '昂', '丝', '（', 'Beyoncé', '）', '于', '2019', '年']
    """
    return _CHARACTERS.findall(text)
