"""Guess the language of texts, by their script and by words that are frequent in one language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from prompt_tuning.metrics.language import language_of_script
from prompt_tuning.support.text import words
from prompt_tuning.templates.languages import LANGUAGES

FREQUENT_WORDS = {
    "ar": "في من على إلى أن هذا التي عن مع ما",
    "bg": "на се от да за са не като той това",
    "cs": "se na je že to jsem by jsou jak ale který",
    "da": "og det er en af til på den ikke jeg har der",
    "de": "der die das und ist nicht ich ein zu mit sie von den auf für",
    "en": "the of and to is that it was for with he you are this on",
    "es": "el los que y en es por un una con para las del su no",
    "fa": "و در به از که این را با است می",
    "fi": "ja on ei se että hän oli mutta ovat kun minä",
    "fr": "le les des et est une dans que pour du ne pas je vous qui",
    "hi": "है के में की और का को से हैं पर",
    "hu": "a az és hogy nem egy van meg is volt",
    "id": "yang dan di itu dengan untuk tidak dari ini pada adalah",
    "it": "il di che è per un una non sono del della gli con le",
    "mr": "आहे आणि हे मध्ये आहेत या होते च्या",
    "nl": "de het een van en is dat niet zijn op te voor ik met",
    "no": "og det er en av til på som ikke jeg har for et",
    "pl": "w się na i nie jest z że do to o jak",
    "pt": "o os que e de do da em um uma para não com é as",
    "ro": "și în de la este nu că un o cu pentru din",
    "ru": "и в не на что я он как это с по но",
    "sv": "och att det är en som på för inte jag av med",
    "tr": "bir ve bu için ile çok da değil ne olan",
    "uk": "і в не на що я він як це з та до",
    "ur": "کے میں کی ہے اور سے کا کو پر نے",
    "vi": "là của và có không một được cho các người trong",
}
"""Words that are frequent in a language; several languages may share one."""

LEAST_SHARE = 0.04
"""The least share of a text's words that are frequent in its language."""

LANGUAGE_OF_NAME = {name.casefold(): codes for codes, name in reversed(LANGUAGES.items())}
LANGUAGE_OF_NAME |= {
    "中文": "zh", "汉语": "zh", "英文": "en", "英语": "en", "日文": "ja", "日语": "ja", "法文": "fr", "法语": "fr",
    "deutsch": "de", "englisch": "en", "français": "fr", "francais": "fr", "anglais": "en", "español": "es",
    "ingles": "en", "inglés": "en",
}  # fmt: skip
"""The codes of languages by the names that columns have."""


def guess_language(texts: Sequence[str]) -> str | None:
    """Return the code of the language that most of the texts' words are written in.

    It is None if neither their script nor their frequent words tell it.

    >>> guess_language(["The boat was built in Bergen."]), guess_language(["Le bateau est dans le port."])
    ('en', 'fr')
    >>> guess_language(["渡船九点离开。"]), guess_language(["1871"])
    ('zh', None)
    """
    by_script = language_of_script(texts)
    counts = Counter(word for text in texts for word in words(text.casefold()))
    scores = {code: sum(map(counts.__getitem__, frequent.split())) for code, frequent in FREQUENT_WORDS.items()}
    best, second = sorted(scores, key=scores.__getitem__, reverse=True)[:2]
    if scores[best] > scores[second] and scores[best] >= LEAST_SHARE * counts.total():
        return best
    return None if by_script == "und" else by_script
