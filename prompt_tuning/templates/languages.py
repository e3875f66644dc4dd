"""Name languages by their codes, for templates."""

from __future__ import annotations

# These variables are not columns: the settings source_lang and target_lang give them.
LANGUAGE_VARIABLES = frozenset(
    {"source_lang", "target_lang", "source_language", "target_language", "source_language_zh", "target_language_zh"}
)


# The codes are those of ISO 639-1, and of ISO 639-3, which NLLB and Tatoeba use.
_LANGUAGE_NAMES = {
    "af afr": "Afrikaans", "am amh": "Amharic", "ar ara arb": "Arabic", "az aze azj": "Azerbaijani",
    "be bel": "Belarusian", "bg bul": "Bulgarian", "bn ben": "Bengali", "bo bod": "Tibetan", "bs bos": "Bosnian",
    "ca cat": "Catalan",
    "cs ces": "Czech", "cy cym": "Welsh", "da dan": "Danish", "de deu": "German", "el ell": "Greek",
    "en eng": "English", "eo epo": "Esperanto", "es spa": "Spanish", "et est ekk": "Estonian", "eu eus": "Basque",
    "fa fas pes": "Persian", "fi fin": "Finnish", "fr fra": "French", "ga gle": "Irish", "gl glg": "Galician",
    "gu guj": "Gujarati", "ha hau": "Hausa", "he heb": "Hebrew", "hi hin": "Hindi", "hr hrv": "Croatian",
    "ht hat": "Haitian Creole", "hu hun": "Hungarian", "hy hye": "Armenian", "id ind": "Indonesian", "ig ibo": "Igbo",
    "is isl": "Icelandic", "it ita": "Italian", "ja jpn": "Japanese", "jv jav": "Javanese", "ka kat": "Georgian",
    "kk kaz": "Kazakh", "km khm": "Khmer", "kn kan": "Kannada", "ko kor": "Korean", "ky kir": "Kyrgyz",
    "lo lao": "Lao", "lt lit": "Lithuanian", "lv lav lvs": "Latvian", "mg mlg plt": "Malagasy", "mk mkd": "Macedonian",
    "ml mal": "Malayalam", "mn mon khk": "Mongolian", "mr mar": "Marathi", "ms msa zsm": "Malay", "mt mlt": "Maltese",
    "my mya": "Burmese", "ne nep npi": "Nepali", "nl nld": "Dutch", "nn nno": "Norwegian Nynorsk",
    "no nb nor nob": "Norwegian", "or ori ory": "Odia", "pa pan": "Punjabi", "pl pol": "Polish",
    "ps pus pbt": "Pashto", "pt por": "Portuguese", "ro ron": "Romanian", "ru rus": "Russian", "sd snd": "Sindhi",
    "si sin": "Sinhala", "sk slk": "Slovak", "sl slv": "Slovenian", "so som": "Somali", "sq sqi als": "Albanian",
    "sr srp": "Serbian", "sv swe": "Swedish", "sw swa swh": "Swahili", "ta tam": "Tamil", "te tel": "Telugu",
    "tg tgk": "Tajik", "th tha": "Thai", "tl tgl fil": "Tagalog", "tr tur": "Turkish", "ug uig": "Uyghur",
    "uk ukr": "Ukrainian", "ur urd": "Urdu", "uz uzb uzn": "Uzbek", "vi vie": "Vietnamese", "xh xho": "Xhosa",
    "yi yid ydd": "Yiddish", "yo yor": "Yoruba", "zh zho cmn": "Chinese", "zu zul": "Zulu",
}  # fmt: skip


LANGUAGES = {}
for _codes, _name in _LANGUAGE_NAMES.items():
    LANGUAGES.update(dict.fromkeys(_codes.split(), _name))


_CHINESE_NAMES = {
    "Arabic": "阿拉伯文", "Bengali": "孟加拉文", "Burmese": "缅甸文", "Chinese": "中文", "Czech": "捷克文",
    "Danish": "丹麦文", "Dutch": "荷兰文", "English": "英文", "Finnish": "芬兰文", "French": "法文", "German": "德文",
    "Greek": "希腊文", "Hebrew": "希伯来文", "Hindi": "印地文", "Hungarian": "匈牙利文", "Indonesian": "印度尼西亚文",
    "Italian": "意大利文", "Japanese": "日文", "Khmer": "高棉文", "Korean": "韩文", "Lao": "老挝文", "Malay": "马来文",
    "Mongolian": "蒙古文", "Norwegian": "挪威文", "Persian": "波斯文", "Polish": "波兰文", "Portuguese": "葡萄牙文",
    "Romanian": "罗马尼亚文", "Russian": "俄文", "Spanish": "西班牙文", "Swedish": "瑞典文", "Tagalog": "他加禄文",
    "Thai": "泰文", "Tibetan": "藏文", "Turkish": "土耳其文", "Uyghur": "维吾尔文", "Ukrainian": "乌克兰文",
    "Urdu": "乌尔都文", "Vietnamese": "越南文",
}  # fmt: skip


def language_variables(source_lang: str | None, target_lang: str | None) -> dict[str, str]:
    """Return the variables of a template for its languages: source_lang `fr` gives source_language `French` too.

    source_language_zh is its name in Chinese, 法文. A language without one keeps its English name there.

    Args:
        source_lang: a code, `fr`, `pt-BR` or `fra_Latn`. The name of an unknown code is the code.
        target_lang: the same for the target.
    """
    variables = {}
    for side, code in (("source", source_lang), ("target", target_lang)):
        if code:
            base = code.replace("-", "_").split("_")[0].lower()
            variables[f"{side}_lang"] = code
            name = LANGUAGES.get(base, code)
            variables[f"{side}_language"] = name
            variables[f"{side}_language_zh"] = _CHINESE_NAMES.get(name, name)
    return variables
