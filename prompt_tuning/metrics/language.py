"""What the metrics need to know of a language: its code, and whether it puts spaces between words."""

import re

from prompt_tuning.support.text import UNSPACED_SCRIPTS

# The codes of ISO 639-3 (as in NLLB's "zho_Hans") and 639-2/B for the languages that a metric treats in its own way.
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
"""Languages written without spaces between words; their tokens are characters."""

_CHARACTERS = re.compile(rf"[^\W{UNSPACED_SCRIPTS}]+|\S")


def primary_language(code: str | None) -> str | None:
    """Return the language of a code such as "en", "zh-CN", "pt_br" or "jpn_Jpan" without its region or script.

    ISO 639-1 is returned where a metric depends on the language, any other code in lower case; None for no code.

    >>> primary_language("zho_Hans"), primary_language("pt-BR"), primary_language(None)
    ('zh', 'pt', None)
    """
    primary = re.split(r"[-_]", (code or "").strip().lower())[0]
    return _ISO_639_1.get(primary, primary) or None


def is_english(language: str | None) -> bool:
    """Whether the rules for English apply, as they do where no language is given."""
    return language in (None, "en")


def characters(text: str) -> list[str]:
    """Split a text of an unspaced language: each character is a token, a run of letters or digits of others is one.

    This is the mixed segmentation of the scripts of CMRC 2018 (Cui et al., 2019) and MLQA (Lewis et al., 2020), for
    all unspaced scripts rather than for CJK ideographs alone; signs that are neither (℃, €) are tokens here and part
    of a run there. A character is a code point, as in sacreBLEU's "char".

    >>> characters("碧昂丝（Beyoncé）于2019年")
    ['碧', '昂', '丝', '（', 'Beyoncé', '）', '于', '2019', '年']
    """
    return _CHARACTERS.findall(text)
