"""Tell metrics about a language: its code, and whether it puts spaces between words."""

import re

from prompt_tuning.support.text import UNSPACED_SCRIPTS

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
}

UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my"})
"""Languages without spaces between words; their tokens are characters."""

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


def is_english(language: str | None) -> bool:
    """Return whether the rules for English apply; they do if no language is named."""
    return language in (None, "en")


def characters(text: str) -> list[str]:
    """Split a text of an unspaced language into characters, but keep runs of letters or digits of other scripts.

    This is the mixed segmentation of the scripts of CMRC 2018 (Cui et al., 2019) and MLQA (Lewis et al., 2020). Unlike
    there, it holds for all unspaced scripts and not only for CJK ideographs. Unlike there, signs such as ℃ and € are
    tokens and not part of a run. A character is a code point, the same as in sacreBLEU's "char".

    >>> characters("碧昂丝（Beyoncé）于2019年")
    ['碧', '昂', '丝', '（', 'Beyoncé', '）', '于', '2019', '年']
    """
    return _CHARACTERS.findall(text)
