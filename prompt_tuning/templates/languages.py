"""Name languages by their codes, for templates."""

from __future__ import annotations

# These variables are not columns: the settings source_lang and target_lang give them.
LANGUAGE_VARIABLES = frozenset({"source_lang", "target_lang", "source_language", "target_language"})


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


def language_variables(source_lang: str | None, target_lang: str | None) -> dict[str, str]:
    """Return the variables of a template for its languages: source_lang `fr` gives source_language `French` too.

    Args:
        source_lang: a code, `fr`, `pt-BR` or `fra_Latn`. The name of an unknown code is the code.
        target_lang: the same for the target.
    """
    variables = {}
    for side, code in (("source", source_lang), ("target", target_lang)):
        if code:
            base = code.replace("-", "_").split("_")[0].lower()
            variables[f"{side}_lang"] = code
            variables[f"{side}_language"] = LANGUAGES.get(base, code)
    return variables
